"""Walks a model and decides for every layer: sparse at which density, or left dense and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from sparsify.candidates import find
from sparsify.distributions import Distribution, check_density, erdos_renyi
from sparsify.eligibility import refuse_model, why_dense
from sparsify.report import Report, report
from sparsify.topology import Shape, connection_count

FULL = "its density is 1"
"""The reason of a layer whose share of the density reaches all its places."""

Density = float | Mapping[str, float] | Callable[[Shape], float]


def plan(
    model: nn.Module,
    density: Density,
    *,
    optimizer: Optimizer | None = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip: as for `sparsify`.
        optimizer: as for `sparsify`; None takes every trainable layer as held by one.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    refuse_model(model)
    candidates = find(model)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    _check_globs("skip", skip, candidates)
    reasons = why_dense(model, candidates, optimizer)
    for name in candidates:
        if any(names(glob, name) for glob in skip):
            reasons.setdefault(name, "skip names it")
    eligible = {name: candidate.shape for name, candidate in candidates.items() if name not in reasons}
    counts = _connections(density, eligible, distribution, candidates)
    for name, shape in eligible.items():
        if name not in counts:
            reasons[name] = "no glob of density names it"
        elif counts[name] == shape[0] * shape[1]:
            reasons[name] = FULL
    return report(model, candidates, reasons.get, counts.__getitem__)


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


def _connections(
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
