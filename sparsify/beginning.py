"""Decides what `sparsify()` begins with: the layers that become sparse, and those that are and go on."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsify import holders, starts
from sparsify.candidates import Candidate
from sparsify.distributions import Distribution, in_proportion
from sparsify.evolution import Evolution
from sparsify.linear import SparseLinear
from sparsify.planning import FULL, WAYS, Decision, Density, check_dense, connections, decide, plan
from sparsify.starts import Start


class Beginning(NamedTuple):
    """What training begins with.

    candidates: the linear maps of the model.
    first: of each layer that becomes sparse, its connections at first: how many, or which (sorted flat indices).
    existing: the layers that are sparse already and that the optimizers hold.
    targets: connections of all of these in the end.
    """

    candidates: dict[str, Candidate]
    first: dict[str, int | Tensor]
    existing: dict[str, SparseLinear]
    targets: dict[str, int]


def begin(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[Any],
    evolution: Evolution,
    distribution: Distribution,
    skip: Iterable[str],
    start: Start,
) -> Beginning:
    """Decide; the arguments are those of `sparsify`.

    Args:
        optimizers: none to serve.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    prunes = bool(optimizers) and evolution.start_density is not None
    existing = starts.existing(model, holders.parameters(*optimizers)) if optimizers else {}
    if not starts.is_by_density(start):
        return _from_start(model, density, optimizers, prunes, distribution, skip, start)
    if density is None:
        return _go_on(model, existing, prunes)
    decision = decide(model, density, optimizers or None, distribution, skip, start)
    if not decision.counts and existing:
        if not prunes:
            check_dense(model)
        return _prune_further(density, existing, distribution, decision)
    if not decision.counts and FULL not in decision.reasons.values():
        check_dense(model)
        report = plan(model, density, optimizer=optimizers or None, distribution=distribution, skip=skip)
        raise ValueError(f"model must hold an nn.Linear that can be sparse, got none.\n{report}")
    first = decision.counts
    if prunes and evolution.start_density is not None:
        first = _first_counts(decision, density, evolution.start_density, distribution)
    targets = decision.counts | {name: layer.nnz for name, layer in existing.items()}
    return Beginning(decision.candidates, dict(first), existing, targets)


def _from_start(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[Any],
    prunes: bool,
    distribution: Distribution,
    skip: Iterable[str],
    start: Start,
) -> Beginning:
    """Where `start` gives the connections; an algorithm that prunes goes on from there to `density`."""
    if isinstance(start, Mapping) and (density is not None or tuple(skip)):
        raise ValueError("density and skip must not be given where start is a state dict, which says what is sparse.")
    if density is not None and not prunes:
        raise ValueError(
            "density must not be given where start gives the connections, got both. An algorithm that prunes, such as "
            "GMP(...), goes on from there down to a density."
        )
    if density is None and prunes and not isinstance(start, Mapping):
        raise ValueError("density must be given where evolution prunes, got none: it is where pruning ends.")
    decision = decide(model, None, optimizers or None, distribution, skip, start)
    first: dict[str, int | Tensor] = dict(decision.flat)
    targets = dict(decision.counts)
    if density is not None:
        ends = decide(model, density, optimizers, distribution, skip, "random").counts
        for name, end in ends.items():
            if name not in first and start == "nonzero":
                shape = decision.candidates[name].shape
                first[name] = targets[name] = shape[0] * shape[1]
            if name in first:
                targets[name] = min(targets[name], end)
    if not first:
        report = plan(model, optimizer=optimizers or None, skip=skip, start=start)
        raise ValueError(f"model must hold an nn.Linear with weights that are zero, got none.\n{report}")
    return Beginning(decision.candidates, first, {}, targets)


def _go_on(model: nn.Module, existing: Mapping[str, SparseLinear], prunes: bool) -> Beginning:
    """Where no density is given: with the layers that are sparse already, by another algorithm or optimizer."""
    if not existing:
        raise TypeError(f"density must be given. {WAYS}")
    if prunes:
        raise ValueError("density must be given where evolution prunes, got none: it is where pruning ends.")
    return Beginning({}, {}, dict(existing), {name: layer.nnz for name, layer in existing.items()})


def _prune_further(
    density: Density,
    existing: Mapping[str, SparseLinear],
    distribution: Distribution,
    decision: Decision,
) -> Beginning:
    """Where nothing else can be sparse: the layers that are go on down to a lower density."""
    shapes = {name: layer.shape for name, layer in existing.items()}
    ends = connections(density, shapes, distribution, list(shapes))
    targets = {name: min(layer.nnz, ends.get(name, layer.nnz)) for name, layer in existing.items()}
    if all(targets[name] == layer.nnz for name, layer in existing.items()):
        raise ValueError(
            f"density must be lower than that of the sparse layers, got {density}: nothing would be pruned."
        )
    return Beginning(decision.candidates, {}, dict(existing), targets)


def _first_counts(
    decision: Decision, density: Density, start_density: float, distribution: Distribution
) -> dict[str, int]:
    """Connections of each sparse layer where training begins denser than it ends.

    Over the layers that the target counts, full ones too: shared out by `distribution` where that shares the target
    out, else in proportion to the target's densities.
    """
    full = [name for name, reason in decision.reasons.items() if reason == FULL]
    shapes = {name: decision.candidates[name].shape for name in [*decision.counts, *full]}
    places = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    ends = {name: decision.counts.get(name, places[name]) for name in shapes}
    if start_density * sum(places.values()) + len(shapes) < sum(ends.values()):  # each is rounded
        raise ValueError(f"start_density must be at least the density in the end, got {start_density:g}.")
    share = distribution
    if isinstance(density, Mapping) or callable(density):
        share = partial(in_proportion, {name: end / places[name] for name, end in ends.items()})
    firsts = connections(start_density, shapes, share, shapes)
    return {name: max(firsts[name], count) for name, count in decision.counts.items()}
