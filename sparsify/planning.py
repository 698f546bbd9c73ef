"""Walks a model and decides for every layer: sparse at which density, or left dense and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsify import starts
from sparsify.candidates import Candidate, find
from sparsify.distributions import Distribution, check_density, erdos_renyi
from sparsify.eligibility import refuse_model, why_dense
from sparsify.linear import SparseLinear
from sparsify.report import Report, report
from sparsify.starts import Start
from sparsify.topology import Shape, connection_count

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

Density = float | Mapping[str, float] | Callable[[Shape], float]


class Decision(NamedTuple):
    """What becomes of each linear map of a model.

    candidates: all of them.
    reasons: why those that stay dense do.
    counts: connections of the others.
    flat: the connections themselves, where they are given.
    """

    candidates: dict[str, Candidate]
    reasons: dict[str, str]
    counts: dict[str, int]
    flat: dict[str, Tensor]


def plan(
    model: nn.Module,
    density: Density | None = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    start: Start = "random",
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip, start: as for `sparsify`.
        optimizer: as for `sparsify`; None takes every trainable layer as held by one.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    starts.check(start)
    if starts.is_by_density(start) and density is None:
        raise TypeError(f"density must be given. {WAYS}")
    if not starts.is_by_density(start) and density is not None:
        raise ValueError("density must not be given where start gives the connections, got both.")
    if optimizer is None or isinstance(optimizer, (list, tuple)):
        optimizers: Sequence[object] | None = optimizer
    else:
        optimizers = [optimizer]
    decision = decide(model, density, optimizers, distribution, skip, start)
    if not decision.counts and FULL not in decision.reasons.values():
        check_dense(model)
    return report(model, decision.candidates, decision.reasons.get, decision.counts.__getitem__)


def decide(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[object] | None,
    distribution: Distribution,
    skip: Iterable[str],
    start: Start,
) -> Decision:
    """Decide for every linear map of `model`: sparse with how many connections, or left dense and why.

    Args:
        density: None where `start` gives the connections.
        optimizers: that hold the parameters; None takes every trainable layer as held.
        model, distribution, skip, start: as for `sparsify`.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    refuse_model(model)
    candidates = find(model)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    _check_globs("skip", skip, candidates)
    reasons = why_dense(model, candidates, optimizers)
    for name in candidates:
        if any(names(glob, name) for glob in skip):
            reasons.setdefault(name, "skip names it")
    flat: dict[str, Tensor] = {}
    if density is None:
        trains = optimizers is not None and len(optimizers) > 0
        flat = starts.given_topologies(start, candidates, reasons, trains)
        reasons = {name: reason for name, reason in reasons.items() if name not in flat}
        for name in candidates.keys() - flat.keys():
            reasons.setdefault(name, FULL if start == "nonzero" else "it is dense in start")
        return Decision(candidates, reasons, {name: len(places) for name, places in flat.items()}, flat)
    eligible = {name: candidate.shape for name, candidate in candidates.items() if name not in reasons}
    counts = connections(density, eligible, distribution, candidates)
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
