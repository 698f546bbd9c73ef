"""The pure core: topology + scores -> `Update`. Nothing here changes anything."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.growth import GrowthRule
from sparsify.evolution.view import LayerView
from sparsify.topology import empty, merge


class Update(NamedTuple):
    """A new topology, and how to move every vector that shares the old one's order to the new one's.

    flat: the new topology, sorted flat indices, (new nnz,).
    origin: where each of its connections comes from, (new nnz,): below `old_nnz` a survivor's old position, else
        `old_nnz` + the position among the grown.
    old_nnz: connections before.
    grown: the new ones among them, sorted flat indices.
    """

    flat: Tensor
    origin: Tensor
    old_nnz: int
    grown: Tensor

    @property
    def kept(self) -> Tensor:
        """Old positions of the survivors, ascending."""
        return self.origin[self.origin < self.old_nnz]

    @property
    def changes(self) -> bool:
        """Whether the new topology is another one."""
        return len(self.grown) > 0 or len(self.flat) != self.old_nnz

    def on(self, device: torch.device) -> "Update":
        """The same on another device."""
        return Update(self.flat.to(device), self.origin.to(device), self.old_nnz, self.grown.to(device))

    def move(self, vector: Tensor, grown: Tensor) -> Tensor:
        """`vector` (old nnz,) in the new order (new nnz,), with `grown` at the grown connections."""
        kind = vector.dtype, vector.device
        both = torch.cat([vector, grown], out=empty(len(vector) + len(grown), *kind))
        return torch.index_select(both, 0, self.origin, out=empty(len(self.origin), *kind))


def evolve(
    algorithm: Evolution, layers: Sequence[LayerView], surplus: Sequence[int], drop_fraction: float
) -> list[Update]:
    """Drop and grow once.

    As many connections grow as are dropped beyond the surplus, all outside the old topology, so no just-dropped
    connection comes back; where fewer places are free than would be dropped, only as many are dropped as can be grown.

    Args:
        algorithm: whose drop rule, scope and growth rule to follow.
        layers: all that evolve together.
        surplus: how many connections each has more than its schedule says; negative where it has fewer.
        drop_fraction: share of the connections to drop, in [0, 1].
    Raises:
        ValueError: a rule broke its contract; nothing was changed.
    """
    scores = [_checked_score(algorithm.drop(layer), layer) for layer in layers]
    choices = algorithm.scope(layers, scores, surplus, drop_fraction)
    lost = sum(len(dropped) - grown for dropped, grown in choices)
    most = sum(max(0, more) for more in surplus)  # layer by layer; where layers share, one may have what another lacks
    if not max(0, sum(surplus)) <= lost <= most:
        raise ValueError(f"a scope must drop as many as grow and the surplus, {most}, got {lost} more than grow.")
    return [replaced(layer, *choice, algorithm.grow) for layer, choice in zip(layers, choices, strict=True)]


def replaced(layer: LayerView, dropped: Tensor, count: int, grow: GrowthRule) -> Update:
    """Without the connections at the positions `dropped`, and with `count` new ones."""
    survives = torch.ones(len(layer.flat), dtype=torch.bool, device=layer.flat.device)
    survives[dropped] = False
    grown = grow(replace(layer, survives=survives), count) if count else layer.flat[:0]
    if grown.dtype != torch.int64 or grown.dim() != 1:
        raise ValueError(f"a growth rule must give a vector of int64, got {grown.dtype} {tuple(grown.shape)}.")
    if len(grown) != count:
        raise ValueError(f"a growth rule must give as many places as it is asked for, {count}, got {len(grown)}.")
    merged, origin = merge(layer.flat, survives, grown)
    _check_topology(merged, grown, layer.shape[0] * layer.shape[1])
    return Update(merged, origin, len(layer.flat), grown)


def _checked_score(score: Tensor, layer: LayerView) -> Tensor:
    if score.shape != layer.values.shape or not score.is_floating_point():
        raise ValueError(
            f"a drop rule must give a score to each of the {len(layer.values)} connections of layer {layer.name!r}, "
            f"got {score.dtype} {tuple(score.shape)}."
        )
    return score


def _check_topology(flat: Tensor, grown: Tensor, places: int) -> None:
    """Refuse what a drop or growth rule of the user's got wrong, before any product sees it."""
    falls = any(bool((run[1:] <= run[:-1]).any()) for run in (grown, flat))
    if falls or (len(flat) and (int(flat[0]) < 0 or int(flat[-1]) >= places)):
        raise ValueError(f"a growth rule must give sorted, unique, inactive places of range({places}).")
