"""Where an `Update` is prepared for carrying out: values, gradient, topology and optimizer buffers move together."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsify import averaging, optimizer_state
from sparsify.evolution.evolve import Update
from sparsify.evolution.view import LayerView, Passes, alone
from sparsify.matrix import SparseMatrix
from sparsify.optimizer_state import GrownState
from sparsify.swap import Change


@torch.no_grad()
def rewiring(
    layer: SparseMatrix,
    update: Update,
    grown: Tensor,
    optimizer: Optimizer | None = None,
    grown_state: GrownState = "zero",
    averages: Sequence[SparseMatrix] = (),
) -> Iterator[Change]:
    """Prepare `update`: survivors keep value, gradient and optimizer state; `grown` are the new values.

    Args:
        averages: copies of `layer` that evolve alike; see `averaging`.
    Returns:
        the changes that carry it out; none where the topology stays. Nothing is changed yet.
    """
    if not update.changes:
        return
    for each in layer, *averages:  # an average may be on another device
        there, new = update.on(each.values.device), grown.to(each.values)
        grad = each.values.grad if each is layer else None
        moved = None if grad is None else there.move(grad, torch.zeros_like(new))
        yield each.replacement(there.flat, there.move(each.values.detach(), new), moved)
    if optimizer is not None:
        yield from optimizer_state.moves(optimizer, layer.values, update, grown.to(layer.values), grown_state)
    yield partial(averaging.evolved, layer, averages)


def view(
    name: str,
    layer: SparseMatrix,
    generator: torch.Generator,
    passes: Passes = (),
    sum_over_ranks: Callable[[Tensor], Tensor] = alone,
) -> LayerView:
    """What the rules may see of `layer`."""
    flat, values = layer.flat(), layer.values.detach()
    survives = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    return LayerView(name, layer.shape, flat, values, survives, generator, layer.values.grad, passes, sum_over_ranks)
