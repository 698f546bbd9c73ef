"""What a density means for each layer: how many connections, in the end and at first."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod

from sparsify._src.checks import check_density, shown
from sparsify._src.conversion.distributions import Distribution, Sizes, in_proportion
from sparsify._src.conversion.globs import check_globs, named
from sparsify._src.ready_made import DENSITY, DISTRIBUTION, check_rule, may_be_rule
from sparsify._src.written import written

Density = float | Mapping[str, float] | Callable[[Sizes], float]


def connections(
    density: Density, shapes: Mapping[str, Sizes], distribution: Distribution, linears: Iterable[str]
) -> dict[str, int]:
    """Connections of each layer that `density` covers."""
    if not isinstance(density, Mapping) and not callable(density):
        return _exact(_wanted(density, shapes, distribution, linears))
    wanted = _wanted(density, shapes, distribution, linears)
    return {name: max(1, round(value)) for name, value in wanted.items()}


def without_share(
    density: Density, shapes: Mapping[str, Sizes], distribution: Distribution, linears: Iterable[str]
) -> list[str]:
    """The layers that keep one connection only because each keeps one: their share of the density rounds to none."""
    return [name for name, value in _wanted(density, shapes, distribution, linears).items() if round(value) < 1]


def check_kinds(density: object, distribution: object) -> None:
    """Raise TypeError unless these are of a kind that `connections` takes."""
    check_rule("distribution", distribution, DISTRIBUTION)
    if callable(density):
        check_rule("density", density, DENSITY, "a number in (0, 1], {module-name glob: number}")
    elif may_be_rule(density) or (
        density is not None and not isinstance(density, (Mapping, str)) and _has_length(density)
    ):
        raise TypeError(
            f"density must be a number in (0, 1], {{module-name glob: number}} or a function of the shape such as "
            f"epsilon(20), got {shown(density)}."
        )


def _has_length(value: object) -> bool:
    try:
        return len(value) > 0  # type: ignore[arg-type]
    except TypeError:
        return False


def _wanted(
    density: Density, shapes: Mapping[str, Sizes], distribution: Distribution, linears: Iterable[str]
) -> dict[str, float]:
    """How many connections each layer that `density` covers should have; they need not be whole."""
    if isinstance(density, Mapping):
        linears = list(linears)
        for glob, value in density.items():
            check_density(value, f" for {glob!r}")
        check_globs("density", tuple(density), linears)
        covered = {glob: named(glob, linears) for glob in density}
        matches = {name: [value for glob, value in density.items() if name in covered[glob]] for name in shapes}
        own = {name: float(found[0]) for name, found in matches.items() if found}
    elif callable(density):
        own = {name: _given(density(shape), name, density) for name, shape in shapes.items()}
    else:
        shares: object = distribution(shapes, check_density(density, takes_epsilon=True))
        if not isinstance(shares, Mapping):
            got = f"{shown(shares)} from {written(distribution)}"
            raise TypeError(f"distribution must give a dict of layer name -> density, got {got}.")
        if uncovered := shapes.keys() - shares.keys():
            raise ValueError(f"distribution must give every layer a density, got none for {sorted(uncovered)}.")
        own = {name: _given(shares[name], name, distribution) for name in shapes}
    return {name: value * prod(shapes[name]) for name, value in own.items()}


def _given(density: object, name: str, rule: object) -> float:
    """The density that a function of the user's gives to a layer, checked."""
    return check_density(density, f" in layer {name!r} from {written(rule)}")


def at_most(
    most: Mapping[str, int],
    density: Density,
    shapes: Mapping[str, Sizes],
    distribution: Distribution,
    linears: Iterable[str],
) -> dict[str, int]:
    """Connections of each layer that `density` covers, of some at most as many as they have.

    What these cannot take of a density for all together is shared out among the others.
    """
    counts = connections(density, shapes, distribution, linears)
    if isinstance(density, Mapping) or callable(density):
        return {name: min(count, most.get(name, count)) for name, count in counts.items()}
    budget, found = sum(counts.values()), dict[str, int]()
    while over := {name: most[name] for name, count in counts.items() if count > most.get(name, count)}:
        found |= over
        rest = {name: shape for name, shape in shapes.items() if name not in found}
        places = sum(prod(shape) for shape in rest.values())
        left = (budget - sum(found.values())) / max(1, places)
        counts = connections(min(1.0, left), rest, distribution, rest) if rest else {}
    return found | counts


def first_connections(
    ends: Mapping[str, int],
    shapes: Mapping[str, Sizes],
    density: Density,
    start_density: float,
    distribution: Distribution,
) -> dict[str, int]:
    """Connections of each layer where training begins denser than it ends.

    Shared out by `distribution` where that shares the target out, else in proportion to the target's densities.

    Args:
        ends: connections in the end; all places of a layer that is full.
        shapes: of the same layers.
    Raises:
        ValueError: the start density is below that of the end.
    """
    places = {name: prod(shape) for name, shape in shapes.items()}
    if start_density * sum(places.values()) + len(shapes) < sum(ends.values()):  # each is rounded
        raise ValueError(f"start_density must be at least the density in the end, got {start_density:g}.")
    share = distribution
    if isinstance(density, Mapping) or callable(density):
        share = partial(in_proportion, {name: end / places[name] for name, end in ends.items()})
    firsts = connections(start_density, shapes, share, shapes)
    return {name: max(firsts[name], end) for name, end in ends.items()}


def _exact(wanted: Mapping[str, float]) -> dict[str, int]:
    """Whole connections of each layer, whose sum is the nearest to what is wanted (largest remainder)."""
    counts = {name: max(1, math.floor(value + 1e-6)) for name, value in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts


def sparsity(value: object) -> str:
    """Why `sparsity=` is no argument, and what is."""
    is_share = isinstance(value, float) and 0 <= value < 1
    instead = f"here density={1 - value:g}" if isinstance(value, float) and is_share else "the share that is kept"
    return f"density must be given, got sparsity={value!r}. density = 1 - sparsity: {instead}."
