"""What a density means for each layer: how many connections, in the end and at first."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

from sparsify._src.checks import check_density
from sparsify._src.conversion.distributions import Distribution, in_proportion
from sparsify._src.topology import Shape, connection_count

Density = float | Mapping[str, float] | Callable[[Shape], float]


def names(glob: str, name: str) -> bool:
    """Whether `glob` names the module `name` or one that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: depth + 1]), glob) for depth in range(len(parts)))


def connections(
    density: Density, shapes: Mapping[str, Shape], distribution: Distribution, linears: Iterable[str]
) -> dict[str, int]:
    """Connections of each layer that `density` covers."""
    if isinstance(density, Mapping):
        for glob, value in density.items():
            check_density(value, f" for {glob!r}")
        check_globs("density", tuple(density), linears)
        matches = {name: [value for glob, value in density.items() if names(glob, name)] for name in shapes}
        return {name: connection_count(found[0], shapes[name]) for name, found in matches.items() if found}
    if callable(density):
        own = {name: check_density(density(shape), f" in layer {name!r}") for name, shape in shapes.items()}
        return {name: connection_count(value, shapes[name]) for name, value in own.items()}
    return _exact(distribution(shapes, check_density(density)), shapes)


def at_most(
    most: Mapping[str, int],
    density: Density,
    shapes: Mapping[str, Shape],
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
        places = sum(shape[0] * shape[1] for shape in rest.values())
        left = (budget - sum(found.values())) / max(1, places)
        counts = connections(min(1.0, left), rest, distribution, rest) if rest else {}
    return found | counts


def first_connections(
    ends: Mapping[str, int],
    shapes: Mapping[str, Shape],
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
    places = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    if start_density * sum(places.values()) + len(shapes) < sum(ends.values()):  # each is rounded
        raise ValueError(f"start_density must be at least the density in the end, got {start_density:g}.")
    share = distribution
    if isinstance(density, Mapping) or callable(density):
        share = partial(in_proportion, {name: end / places[name] for name, end in ends.items()})
    firsts = connections(start_density, shapes, share, shapes)
    return {name: max(firsts[name], end) for name, end in ends.items()}


def _exact(densities: Mapping[str, float], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Whole connections of each layer, whose sum is the nearest to the densities' (largest remainder)."""
    if uncovered := shapes.keys() - densities.keys():
        raise ValueError(f"distribution must give every layer a density, got none for {sorted(uncovered)}.")
    wanted = {
        name: check_density(densities[name], f" in layer {name!r}") * shape[0] * shape[1]
        for name, shape in shapes.items()
    }
    counts = {name: max(1, math.floor(value + 1e-6)) for name, value in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts


def check_globs(argument: str, globs: Sequence[str], layers: Iterable[str]) -> None:
    """Raise unless each of these globs is one, and names a layer."""
    layers = list(layers)
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"{argument} must hold module-name globs, got {glob!r}.")
        if not any(names(glob, name) for name in layers):
            raise ValueError(f"{argument} must name linear layers, got {glob!r}, which names none of {layers}.")


def sparsity(value: object) -> str:
    """Why `sparsity=` is no argument, and what is."""
    is_share = isinstance(value, float) and 0 <= value < 1
    instead = f"here density={1 - value:g}" if isinstance(value, float) and is_share else "the share that is kept"
    return f"density must be given, got sparsity={value!r}. density = 1 - sparsity: {instead}."
