"""The pure core: topology + scores -> `Update`. Nothing here changes anything."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sparsify._src.checks import described, fault_of_vector
from sparsify._src.evolution.drop import checked_scores, spared_by
from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.grown_values import GrownValues
from sparsify._src.evolution.growth import GrowthRule, checked_places
from sparsify._src.evolution.layer_view import LayerView
from sparsify._src.evolution.scopes import checked_choices
from sparsify._src.vectors import empty, merge
from sparsify._src.written import written


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


def propose_updates(
    algorithm: Evolution, layers: Sequence[LayerView], excess: Sequence[int], drop_fraction: float
) -> list[Update]:
    """Drop and grow once.

    As many connections grow as are dropped beyond the excess, all outside the old topology, so no just-dropped
    connection comes back; where fewer places are free than would be dropped, only as many are dropped as can be grown.

    Args:
        algorithm: whose drop rule, scope and growth rule to follow.
        layers: all that evolve together.
        excess: how many connections each has more than its schedule says; negative where it has fewer.
        drop_fraction: share of the connections to drop, in [0, 1].
    Raises:
        ValueError: a rule broke its contract; nothing was changed.
    """
    scores = [checked_scores(algorithm.drop, layer) for layer in layers]
    layers = [
        replace(layer, spared=spared_by(algorithm.drop, layer, score))
        for layer, score in zip(layers, scores, strict=True)
    ]
    choices = checked_choices(algorithm.scope, layers, scores, excess, drop_fraction)
    return [propose_update(layer, *choice, algorithm.grow) for layer, choice in zip(layers, choices, strict=True)]


def propose_update(layer: LayerView, dropped: Tensor, count: int, grow: GrowthRule) -> Update:
    """Without the connections at the positions `dropped`, and with `count` new ones."""
    survives = torch.ones(len(layer.flat), dtype=torch.bool, device=layer.flat.device)
    survives[dropped] = False
    grown = checked_places(grow, replace(layer, survives=survives), count) if count else layer.flat[:0]
    merged, origin = merge(layer.flat, survives, grown)
    return Update(merged, origin, len(layer.flat), grown)


def checked_grown_values(rule: GrownValues, update: Update, view: LayerView) -> Tensor:
    """The values from which the grown connections of a layer start, (grown,).

    Raises:
        ValueError: `rule` gives something else than a floating-point vector of as many.
    """
    count = len(update.grown)
    values: Tensor = rule(count, view.shape, len(update.flat), view.generator)
    device = values.device if isinstance(values, Tensor) and not values.is_meta else view.flat.device
    way = fault_of_vector(values, count, device)
    if way or not values.is_floating_point():
        raise ValueError(
            f"grown_values must give {count} floating-point numbers, got {described(values)} from {written(rule)} in "
            f"layer {view.name!r}. Give a dense vector, such as torch.zeros(count). {way}".rstrip()
        )
    if not values.isfinite().all():
        odd = float(values[~values.isfinite()][0])
        raise ValueError(
            f"grown_values must give finite numbers, got {odd} from {written(rule)} in layer {view.name!r}. The "
            "connections would spoil the whole output."
        )
    return values.detach().resolve_neg()
