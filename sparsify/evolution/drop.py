"""Drop rules: what a connection is worth. Those with the lowest scores are dropped, within a scope."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sparsify.evolution.view import LayerView, needing_gradient, needs_gradient

DropRule = Callable[[LayerView], Tensor]
"""layer -> score of each connection, (nnz,)."""


def magnitude(layer: LayerView) -> Tensor:
    """|value|: the weakest connections go first."""
    return layer.values.abs()


@needing_gradient
def saliency(layer: LayerView) -> Tensor:
    """|value * gradient|: what the loss would change, to first order, without the connection.

    The gradient is the one in `values.grad`: evolution must come before `zero_grad()`, as it does in a usual loop.

    Source: Molchanov et al. 2017 (arXiv:1611.06440); Lee et al. 2019 (SNIP, arXiv:1810.02340).
    """
    return (layer.values * layer.gradient).abs()  # type: ignore[operator]  # needing_gradient: there is one


def sparing_units(rule: DropRule = magnitude) -> DropRule:
    """A drop rule that spares the best connection of every output unit: no unit loses its last input.

    Args:
        rule: scores the connections.
    """
    spare = partial(_spare, rule)
    return needing_gradient(spare) if needs_gradient(rule) else spare


def _spare(rule: DropRule, layer: LayerView) -> Tensor:
    score = rule(layer)
    row = layer.flat // layer.shape[1]
    best = score.new_full((layer.shape[0],), -torch.inf).scatter_reduce(0, row, score, "amax")
    return torch.where(score == best[row], torch.inf, score)
