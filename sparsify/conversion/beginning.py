"""Decides what `sparsify()` begins with: the layers that become sparse, and those that are and go on."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsify.conversion import starts
from sparsify.conversion.decision import FULL, IS_SPARSE, WAYS, Decision, Density, check_dense, connections, decide
from sparsify.conversion.distributions import Distribution, in_proportion
from sparsify.conversion.linear_maps import Candidate
from sparsify.conversion.report import report
from sparsify.conversion.starts import Start
from sparsify.evolution import Evolution
from sparsify.layers.linear import SparseLinear
from sparsify.training import holders


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
        starts.check_density(start, density, prunes)
        if isinstance(start, Mapping) and tuple(skip):
            raise ValueError(starts.GIVEN_WITH_STATE_DICT)
    elif density is None:
        return _go_on(model, existing, prunes)
    going_on = existing if prunes else {}
    decision = decide(model, density, optimizers or None, distribution, skip, start, going_on)
    new = {name: count for name, count in decision.counts.items() if name not in existing}
    targets = {name: layer.nnz for name, layer in existing.items()} | decision.counts
    if not new:
        _check_something_changes(model, density, existing if prunes else {}, targets, decision, start)
    first: dict[str, int | Tensor] = {**new}
    if decision.flat or going_on:  # pruning goes on from the model as it is: what is dense begins with all its places
        shapes = {name: decision.candidates[name].shape for name in new}
        first = {name: decision.flat.get(name, shape[0] * shape[1]) for name, shape in shapes.items()}
    elif density is not None and prunes and evolution.start_density is not None:
        first = {**_first_counts(decision, density, evolution.start_density, distribution)}
    return Beginning(decision.candidates, first, existing, targets)


def _check_something_changes(
    model: nn.Module,
    density: Density | None,
    going_on: Mapping[str, SparseLinear],
    targets: Mapping[str, int],
    decision: Decision,
    start: Start,
) -> None:
    """Where no layer becomes sparse: raise ValueError unless others are pruned further, or the user wants all dense."""
    if going_on:
        if all(targets[name] == layer.nnz for name, layer in going_on.items()):
            raise ValueError(
                f"density must be lower than that of the sparse layers, got {density}: nothing would be pruned."
            )
        return
    check_dense(model)
    if start == "nonzero" or FULL not in decision.reasons.values():
        what = "with weights that are zero" if start == "nonzero" else "that can be sparse"
        table = report(model, decision.candidates, decision.reasons.get, decision.counts.__getitem__)
        raise ValueError(f"model must hold an nn.Linear {what}, got none.\n{table}")


def _go_on(model: nn.Module, existing: Mapping[str, SparseLinear], prunes: bool) -> Beginning:
    """Where no density is given: with the layers that are sparse already, by another algorithm or optimizer."""
    if not existing:
        ways = f"{WAYS} {IS_SPARSE}" if starts.existing(model, None) else WAYS
        raise TypeError(f"density must be given. {ways}")
    if prunes:
        raise ValueError("density must be given where evolution prunes, got none: it is where pruning ends.")
    return Beginning({}, {}, dict(existing), {name: layer.nnz for name, layer in existing.items()})


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
