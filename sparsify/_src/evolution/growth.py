"""Growth rules: where new connections grow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparsify._src.checks import check_count, check_share
from sparsify._src.evolution.faults import fault_of_places
from sparsify._src.evolution.layer_view import AroundRule, LayerView, needing_gradient, needs_gradient, seen_by
from sparsify._src.ready_made import GROW, Kind, check_rule
from sparsify._src.vectors import free_places, lowest, merge, positions, sample, sample_outside
from sparsify._src.written import as_typed, written

GrowthRule = Callable[[LayerView, int], Tensor]
"""(layer, count) -> `count` flat indices outside `layer.flat`, sorted: what was just dropped is not grown again."""

TILE = 1 << 21
"""Elements of the dense gradient that `by_gradient` holds at a time: 8 MiB in float32."""


def uniformly(layer: LayerView, count: int) -> Tensor:
    """Uniformly at random where there are none: SET's rule.

    Example:
        >>> alive = torch.ones(4, dtype=torch.bool)
        >>> layer = LayerView("fc", (2, 3), torch.tensor([0, 1, 2, 3]), torch.ones(4), alive, torch.Generator())
        >>> uniformly(layer, 2)
        tensor([4, 5])
    """
    return sample_outside(layer.flat, layer.shape[0] * layer.shape[1], count, layer.generator)


@needing_gradient
def by_gradient(layer: LayerView, count: int) -> Tensor:
    """Where the gradient of the dense weight is largest in magnitude: RigL's rule, exact.

    The dense gradient is never held: it is computed a tile of rows at a time from the operands of the backward passes
    since the last step (all micro-batches count), and each tile leaves no more than `count` candidates. Memory: a tile
    (8 MiB, or one row where that is more), about 20 bytes a candidate, and the operands. Time: that of the weight
    gradient of a dense layer. Among equal gradients the first places win. In distributed training the gradients of all
    ranks are added up tile by tile, so an evolution sends as much as one step of a dense network does.

    Raises:
        ValueError: no backward pass was kept, because this evolution was not due by the schedule.
    Example:
        >>> alive, passes = torch.ones(1, dtype=torch.bool), [(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 1.0]]))]
        >>> layer = LayerView("fc", (2, 2), torch.tensor([2]), torch.ones(1), alive, torch.Generator(), passes=passes)
        >>> by_gradient(layer, 2)  # the dense gradient is [[2, 1], [-6, -3]], and place 2 is taken
        tensor([0, 3])

    Source: Evci et al. 2020 (RigL, arXiv:1911.11134).
    """
    best, place = layer.values.new_empty(0), layer.flat[:0]
    if not count:
        return place
    for start, scores in _tiles(layer):
        above = scores > best.min() if len(best) == count else scores >= 0  # of equals the first, which are here
        found = positions(above)
        best = torch.cat([best.to(scores), scores[found]])
        place = torch.cat([place.to(found), found + start])
        chosen = lowest(-best, count) if len(best) > count else slice(None)
        best, place = best[chosen], place[chosen]
    return place


@needing_gradient
@dataclass(frozen=True, repr=False)
class by_gradient_among:  # written like the functions beside it
    """A growth rule: by gradient, among so many random candidates for each connection that grows.

    For layers whose dense gradient would take too long: time, memory and what ranks send are those of the candidates.

    Args:
        candidates: for each connection; 1 is `uniformly`.
    Raises:
        ValueError, TypeError: candidates is below 1, or no whole number.
    Example:
        >>> RigL(until=45_000, grow=by_gradient_among(8))
        RigL(until=45000, grow=by_gradient_among(8))
    """

    candidates: int
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_count("candidates", self.candidates, 1)

    def __call__(self, layer: LayerView, count: int) -> Tensor:
        """Of the candidates, those where the gradient is largest."""
        flat = uniformly(layer, min(self.candidates * count, layer.free))
        scores = layer.sum_over_ranks(layer.gradient_at(flat)).abs()
        return flat[lowest(-scores, count)]


@dataclass(frozen=True, repr=False)
class mixed:
    """A growth rule: the share `share` of the connections grows by `first`, the rest by `second`.

    Args:
        first, second: growth rules, such as `by_gradient` and `uniformly`.
        share: of `first`, in [0, 1].
    Raises:
        ValueError, TypeError: share is outside [0, 1] or no number, or a rule cannot be called.
    Example:
        >>> mixed(by_gradient, uniformly, share=0.5)
        mixed(by_gradient, uniformly, share=0.5)
    """

    first: GrowthRule
    second: GrowthRule
    share: float = field(kw_only=True)
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_rule("first", self.first, GROW)
        check_rule("second", self.second, GROW)
        check_share("share", self.share)

    @property
    def needs_gradient(self) -> bool:
        """Whether one of the two does."""
        return needs_gradient(self.first) or needs_gradient(self.second)

    def __call__(self, layer: LayerView, count: int) -> Tensor:
        """Places by `first`, and then places by `second` among what is left."""
        of_first = checked_places(self.first, layer, round(self.share * count))
        of_second = checked_places(self.second, _with(layer, of_first), count - len(of_first))
        return torch.cat([of_first, of_second]).sort().values


@dataclass(frozen=True, repr=False)
class feeding_units(AroundRule):
    """A growth rule that first gives each output unit without inputs one, at random; the rest grows by `rule`.

    With as many dropped as grown, units that are fed stay so, and empty ones find an input as far as the count goes.

    Args:
        rule: a growth rule.
    Raises:
        TypeError: rule cannot be called.
    Example:
        >>> Evolution(interval=200, drop=sparing_units(), grow=feeding_units(by_gradient))
        Evolution(interval=200, drop=sparing_units(), grow=feeding_units(by_gradient))
    """

    rule: GrowthRule = uniformly
    kind: ClassVar[Kind] = GROW

    def __call__(self, layer: LayerView, count: int) -> Tensor:
        """A place in each empty unit, as far as the count goes, and the rest by `rule`."""
        outs, ins = layer.shape
        row = layer.flat // ins
        inactive = ins - torch.bincount(row, minlength=outs)
        fed = torch.bincount(row[layer.survives], minlength=outs) > 0
        empty = positions(~fed & (inactive > 0))
        if len(empty) > count:
            empty = empty[sample(len(empty), count, layer.generator).to(empty.device)]
        before = inactive.cumsum(0) - inactive
        chance = torch.rand(len(empty), dtype=torch.float64, generator=layer.generator, device="cpu").to(empty.device)
        number = before[empty] + (chance * inactive[empty]).long()
        of_empty = free_places(layer.flat, number)
        rest = checked_places(self.rule, _with(layer, of_empty), count - len(of_empty))
        return torch.cat([of_empty, rest]).sort().values


def checked_places(rule: GrowthRule, layer: LayerView, count: int) -> Tensor:
    """The places that a growth rule gives, ready for compiled code.

    Raises:
        ValueError: they are not `count` sorted, unique places outside `layer.flat`, int64 on its device.
    """
    places, total, device = rule(seen_by(rule, layer), count), layer.shape[0] * layer.shape[1], layer.flat.device
    if fault := fault_of_places(places, layer, count):
        raise ValueError(
            f"a growth rule must give {count} sorted, unique, inactive places of range({total}) as int64 on {device}, "
            f"got {fault.got} from {written(rule)} in layer {layer.name!r}. "
            f"Places are row * in_features + col, outside layer.flat. {fault.way}".rstrip()
        )
    return places.resolve_neg().contiguous()


def _tiles(layer: LayerView) -> Iterator[tuple[int, Tensor]]:
    """|dense gradient| a tile of rows at a time: (flat index of its first element, flattened), active places -1."""
    outs, ins = layer.shape
    height = max(1, TILE // ins)
    bounds = torch.arange(0, outs + height, height, device=layer.flat.device) * ins
    first = torch.searchsorted(layer.flat, bounds).tolist()
    for number, row in enumerate(range(0, outs, height)):
        part = layer.dense_gradient(slice(row, min(row + height, outs)))
        scores = layer.sum_over_ranks(part.view(-1)).abs_().nan_to_num_(nan=0.0, posinf=torch.inf)  # inf - inf
        scores[layer.flat[first[number] : first[number + 1]] - row * ins] = -1
        yield row * ins, scores


def _with(layer: LayerView, grown: Tensor) -> LayerView:
    """The layer as if `grown` were there already, at zero, so that they are not grown again."""
    everywhere = torch.ones_like(layer.survives)
    flat, origin = merge(layer.flat, everywhere, grown)
    survives = torch.cat([layer.survives, everywhere.new_ones(len(grown))])[origin]
    values = torch.cat([layer.values, layer.values.new_zeros(len(grown))])[origin]
    return replace(layer, flat=flat, survives=survives, values=values, gradient=None, spared=None)
