"""The pure core: topology + values -> `Update`. Nothing here changes anything."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparsify.evolution.drop import DropRule
from sparsify.topology import Shape, empty, merge


class Update(NamedTuple):
    """A new topology, and how to move every vector that shares the old one's order to the new one's.

    flat: the new topology, sorted flat indices, (new nnz,).
    origin: where each of its connections comes from, (new nnz,): below `old_nnz` a survivor's old position, else
        `old_nnz` + the position among the grown.
    old_nnz: connections before.
    grown: how many are new.
    """

    flat: Tensor
    origin: Tensor
    old_nnz: int
    grown: int

    @property
    def kept(self) -> Tensor:
        """Old positions of the survivors, ascending."""
        return self.origin[self.origin < self.old_nnz]

    def move(self, vector: Tensor, grown: Tensor) -> Tensor:
        """`vector` (old nnz,) in the new order (new nnz,), with `grown` at the grown connections."""
        kind = vector.dtype, vector.device
        both = torch.cat([vector, grown], out=empty(len(vector) + len(grown), *kind))
        return torch.index_select(both, 0, self.origin, out=empty(len(self.origin), *kind))


def evolve(
    flat: Tensor,
    values: Tensor,
    shape: Shape,
    drop_fraction: float,
    *,
    drop: DropRule,
    grow: Callable[[Tensor, Shape, int], Tensor] | None,
) -> Update:
    """Drop and grow once.

    As many connections grow as are dropped, all outside the old topology, so no just-dropped connection comes back;
    where fewer places are free than the rule would drop, only as many are dropped as can be grown. With `grow=None`
    nothing grows.

    Args:
        flat: sorted flat indices, (nnz,).
        values: of the connections, (nnz,).
        shape: (out_features, in_features).
        drop_fraction: share of the connections to drop, in [0, 1].
        drop: the drop rule.
        grow: the growth rule with its generator bound: (flat, shape, count) -> flat indices; None grows nothing.
    Raises:
        ValueError: the rules broke their contract; nothing was changed.
    """
    free = shape[0] * shape[1] - len(flat)
    dropped = drop(values, drop_fraction, len(flat) if grow is None else free)
    survives = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    survives[dropped] = False
    grown = flat[:0] if grow is None else grow(flat, shape, len(dropped))
    if grown.dtype != torch.int64 or grown.dim() != 1:
        raise ValueError(f"a growth rule must give a vector of int64, got {grown.dtype} {tuple(grown.shape)}.")
    merged, origin = merge(flat, survives, grown)
    _check(merged, grown, shape[0] * shape[1], len(flat) if grow is not None else len(merged))
    return Update(merged, origin, len(flat), len(grown))


def _check(flat: Tensor, grown: Tensor, places: int, nnz: int) -> None:
    """Refuse what a drop or growth rule of the user's got wrong, before any product sees it."""
    if len(flat) != nnz:
        raise ValueError(f"a growth rule must grow as many as were dropped, got {len(flat)} connections of {nnz}.")
    falls = any(bool((run[1:] <= run[:-1]).any()) for run in (grown, flat))
    if falls or (nnz and (int(flat[0]) < 0 or int(flat[-1]) >= places)):
        raise ValueError(f"a growth rule must give sorted, unique, inactive places of range({places}).")
