"""Walks a model and decides for every layer: sparse at which density, or left dense and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsify.checks import check_density
from sparsify.conversion import starts
from sparsify.conversion.distributions import Distribution, erdos_renyi
from sparsify.conversion.eligibility import refuse_model, why_dense
from sparsify.conversion.linear_maps import Candidate, aliases, find
from sparsify.conversion.report import Report, report
from sparsify.conversion.starts import SKIPPED, Start
from sparsify.evolution import SET, Evolution
from sparsify.layers.linear import SparseLinear
from sparsify.topology import Shape, connection_count
from sparsify.training import holders

FULL = "its density is 1"
"""The reason of a layer whose share of the density reaches all its places."""

WAYS = (
    'Without a density: start="nonzero" takes a pruned model as it is, start=other the topology of another sparse '
    "model, and start=state_dict all of a sparse checkpoint."
)
"""What an error about densities names."""

IS_SPARSE = (
    "To prune it further: trim(model, fraction, optimizer), or sparsify(model, optimizer, density, "
    "evolution=GMP(...)) with the optimizer that sparsify() returned. For another algorithm, or a new optimizer of the "
    "same sparse layers: sparsify(model, optimizer, evolution=...) without a density. For other topologies: "
    "reset_parameters() of its layers, or sparsify(densify(model), ...)."
)
"""What can be done with a model that is sparse already."""

SPARSE_ALREADY = "it is sparse already, and model.load_state_dict(state_dict) takes over another topology"
"""Why a layer cannot become sparse at the connections of another model."""

Density = float | Mapping[str, float] | Callable[[Shape], float]


class Decision(NamedTuple):
    """What becomes of each linear map of a model.

    candidates: the dense ones.
    reasons: why those that stay dense do.
    counts: connections in the end: of those that become sparse, and of sparse layers that are pruned further.
    flat: the connections at first, where they are given.
    """

    candidates: dict[str, Candidate]
    reasons: dict[str, str]
    counts: dict[str, int]
    flat: dict[str, Tensor]


def plan(
    model: nn.Module,
    density: Density | None = None,
    *,
    optimizer: Any = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    start: Start = "random",
    evolution: Evolution = SET(),  # noqa: B008  (frozen)
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip, start: as for `sparsify`.
        optimizer: one or several, as for `sparsify`; None takes every trainable layer as held by one.
        evolution: as for `sparsify`; one that prunes takes layers that are sparse already further down, and the table
            shows what they have in the end.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    starts.check(start)
    if not isinstance(evolution, Evolution):
        raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {evolution!r}.")
    prunes = evolution.start_density is not None
    if not starts.is_by_density(start):
        starts.check_density(start, density, prunes)
    elif density is None:
        raise TypeError(f"density must be given. {WAYS}")
    single = optimizer is not None and not isinstance(optimizer, Sequence)
    optimizers: Any = [optimizer] if single else optimizer
    going_on = starts.existing(model, None if optimizers is None else holders.parameters(*optimizers)) if prunes else {}
    decision = decide(model, density, optimizers, distribution, skip, start, going_on)
    if not decision.counts and FULL not in decision.reasons.values():
        check_dense(model)
    return report(model, decision.candidates, decision.reasons.get, decision.counts.__getitem__, decision.counts.get)


def decide(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[object] | None,
    distribution: Distribution,
    skip: Iterable[str],
    start: Start,
    going_on: Mapping[str, SparseLinear],
) -> Decision:
    """Decide for every linear map of `model`: sparse with how many connections, or left dense and why.

    Args:
        density: what remains in the end; None for the connections that `start` gives.
        optimizers: that hold the parameters; None takes every trainable layer as held.
        going_on: sparse layers that are pruned further: they share the density, and begin as they are.
        model, distribution, skip, start: as for `sparsify`.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    refuse_model(model)
    candidates, sparse = find(model), starts.existing(model, None)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    _check_globs("skip", skip, [*candidates, *sparse])
    reasons = why_dense(model, candidates, optimizers)
    skipped = {name for name in (*candidates, *sparse) if any(names(glob, name) for glob in skip)}
    for name in skipped & candidates.keys():
        reasons.setdefault(name, SKIPPED)
    flat: dict[str, Tensor] = {}
    if not starts.is_by_density(start):
        trains = optimizers is not None and len(optimizers) > 0
        known = reasons | dict.fromkeys(sparse, SPARSE_ALREADY)
        flat = starts.given_topologies(start, candidates, known, aliases(model), trains)
        reasons = {name: reason for name, reason in reasons.items() if name not in flat}
        for name in candidates.keys() - flat.keys():
            if density is None or start != "nonzero":
                reasons.setdefault(name, FULL if start == "nonzero" else "it is dense in start")
    most = {name: len(places) for name, places in flat.items()}
    if density is None:
        return Decision(candidates, reasons, most, flat)
    eligible = {name: candidate.shape for name, candidate in candidates.items() if name not in reasons}
    pruned = {name: layer for name, layer in going_on.items() if name not in skipped}
    most |= {name: layer.nnz for name, layer in pruned.items()}
    shapes = eligible | {name: layer.shape for name, layer in pruned.items()}
    counts = _at_most(most, density, shapes, distribution, [*candidates, *pruned])
    for name, shape in eligible.items():
        if name not in counts:
            reasons[name] = "no glob of density names it"
        elif counts[name] == shape[0] * shape[1]:
            reasons[name] = FULL
    counts = {name: count for name, count in counts.items() if name not in reasons}
    return Decision(candidates, reasons, counts, flat)


def check_dense(model: nn.Module) -> None:
    """Raise ValueError if `model`, in which nothing else can become sparse, is sparse already."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            raise ValueError(f"model must be dense, got SparseLinear in layer {name!r}. {IS_SPARSE}")


def summary(model: nn.Module) -> Report:
    """Tell what `model` is now: each layer's shape, density, connections, bytes and dead units (in the table: units
    without inputs + units without outputs).

    Returns:
        a Report; `print` it for a table.
    """
    candidates = find(model)
    kinds = {name: type(candidate.owner).__name__ for name, candidate in candidates.items()}
    return report(model, candidates, lambda name: f"it is an ordinary {kinds[name]}", lambda name: 0)


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
        _check_globs("density", tuple(density), linears)
        matches = {name: [value for glob, value in density.items() if names(glob, name)] for name in shapes}
        return {name: connection_count(found[0], shapes[name]) for name, found in matches.items() if found}
    if callable(density):
        own = {name: check_density(density(shape), f" in layer {name!r}") for name, shape in shapes.items()}
        return {name: connection_count(value, shapes[name]) for name, value in own.items()}
    return _exact(distribution(shapes, check_density(density)), shapes)


def _at_most(
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


def _check_globs(argument: str, globs: Sequence[str], layers: Iterable[str]) -> None:
    layers = list(layers)
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"{argument} must hold module-name globs, got {glob!r}.")
        if not any(names(glob, name) for name in layers):
            raise ValueError(f"{argument} must name linear layers, got {glob!r}, which names none of {layers}.")
