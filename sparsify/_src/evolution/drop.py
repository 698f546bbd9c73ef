"""Drop rules: what a connection is worth. Those with the lowest scores are dropped, within a scope."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsify._src.checks import described, fault_of_vector
from sparsify._src.evolution.faults import fault_of_scores
from sparsify._src.evolution.layer_view import AroundRule, LayerView, needing_gradient, seen_by
from sparsify._src.ready_made import DROP, Kind
from sparsify._src.vectors import positions
from sparsify._src.written import written

DropRule = Callable[[LayerView], Tensor]
"""layer -> score of each connection, (nnz,) of floating point.

A rule may also have a method `spares(layer, scores)` that tells which connections stay whatever their scores, (nnz,)
bool, or None for none."""


def magnitude(layer: LayerView) -> Tensor:
    """|value|: the weakest connections go first.

    Example:
        >>> flat, values = torch.tensor([0, 2, 5]), torch.tensor([0.5, -3.0, -0.25])
        >>> layer = LayerView("fc", (2, 3), flat, values, torch.ones(3, dtype=torch.bool), torch.Generator())
        >>> magnitude(layer)
        tensor([0.5000, 3.0000, 0.2500])
    """
    return layer.values.abs()


@needing_gradient
def saliency(layer: LayerView) -> Tensor:
    """|value * gradient|: what the loss would change, to first order, without the connection.

    The gradient is the one in `values.grad`: evolution must come before `zero_grad()`, as it does in a usual loop.

    Example:
        >>> Evolution(interval=100, drop=saliency, grow=by_gradient)
        Evolution(interval=100, drop=saliency, grow=by_gradient)

    Source: Molchanov et al. 2017 (arXiv:1611.06440); Lee et al. 2019 (SNIP, arXiv:1810.02340).
    """
    return (layer.values * layer.gradient).abs()  # type: ignore[operator]  # needing_gradient: there is one


@dataclass(frozen=True, repr=False)
class sparing_units(AroundRule):  # written like the functions beside it
    """A drop rule that keeps the best connection of every output unit: no unit loses its last input.

    The best has the highest score of its unit, NaN above all; among equals it is the first. It stays whatever its score
    and however many are to go: where only spared connections are left, fewer are dropped.

    Args:
        rule: scores the connections.
    Raises:
        TypeError: rule cannot be called.
    Example:
        >>> sparing_units(saliency)
        sparing_units(saliency)
    """

    rule: DropRule = magnitude
    kind: ClassVar[Kind] = DROP

    def __call__(self, layer: LayerView) -> Tensor:
        """The scores that `rule` gives."""
        return self.rule(layer)

    def spares(self, layer: LayerView, scores: Tensor) -> Tensor:
        """The best connection of each output unit that has one, and what `rule` spares itself, (nnz,) bool."""
        unit = layer.flat // layer.shape[1]
        top = scores.new_full((layer.shape[0],), -torch.inf).scatter_reduce(0, unit, scores, "amax")
        best = positions((scores == top[unit]) | scores.isnan())  # the top of a unit with a NaN is NaN
        first = torch.diff(unit[best], prepend=unit.new_full((1,), -1)) > 0
        spared = torch.zeros_like(scores, dtype=torch.bool)
        spared[best[first]] = True
        others = spared_by(self.rule, layer, scores)
        return spared if others is None else spared | others


def checked_scores(rule: DropRule, layer: LayerView) -> Tensor:
    """The scores that a drop rule gives, ready for compiled code: in float32, or float64 where they are.

    Raises:
        ValueError: they are no floating-point vector with one number for each connection, on the layer's device; or one
            is NaN though the connection's value and gradient are numbers.
    """
    scores = rule(seen_by(rule, layer))
    if fault := fault_of_scores(scores, layer):
        raise ValueError(
            f"a drop rule must give a score to each of the {len(layer.flat)} connections of layer {layer.name!r}, got "
            f"{fault.got} from {written(rule)}. Scores are a dense floating-point vector on {layer.flat.device}. "
            f"{fault.way}"
        )
    scores = scores.detach().resolve_neg()
    return scores if scores.dtype == torch.float64 else scores.float()


def spared_by(rule: DropRule, layer: LayerView, scores: Tensor) -> Tensor | None:
    """Which connections a drop rule spares, (nnz,) bool; None for none.

    Raises:
        ValueError: it answers with something else.
    """
    spares = getattr(rule, "spares", None)
    spared: Any = spares(seen_by(rule, layer), scores) if spares else None
    if spared is None:
        return None
    if (way := fault_of_vector(spared, len(scores), scores.device)) or spared.dtype != torch.bool:
        way = way or "A mask such as spared > 0 is of bool."
        raise ValueError(
            f"a drop rule's spares() must give a bool to each of the {len(scores)} connections of layer "
            f"{layer.name!r}, got {described(spared)} from {written(rule)}. Connections that must stay are True. {way}"
        )
    checked: Tensor = spared
    return checked.contiguous()
