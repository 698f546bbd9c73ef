"""Where an `Update` is prepared for carrying out: values, gradient, topology and optimizer buffers move together."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sparsify._src.evolution.layer_view import LayerView, Passes, alone
from sparsify._src.evolution.update import Update
from sparsify._src.layers import averaging
from sparsify._src.layers.averaging import Average
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change
from sparsify._src.training import foreign_writes
from sparsify._src.training.optimizer_state import GrownState, Kept


@torch.no_grad()
def prepare_update(
    layer: SparseMatrix,
    update: Update,
    grown: Tensor,
    kept: Kept | None = None,
    grown_state: GrownState = "zero",
    averages: Sequence[Average] = (),
) -> Iterator[Change]:
    """Prepare `update`: survivors keep value, gradient and optimizer state; `grown` are the new values.

    Args:
        kept: by the optimizers that hold its values.
        averages: of its values, which evolve alike; see `averaging`.
    Returns:
        the changes that carry it out; none where the topology stays. Nothing is changed yet.
    """
    if not update.changes:
        return
    for each in layer, *averages:  # an average may be on another device
        there, new = update.on(each.values.device), grown.to(each.values)
        grad = each.values.grad if each is layer else None
        moved = None if grad is None else there.move(grad, torch.zeros_like(new))
        yield each.prepare_topology(there.flat, there.move(each.values.detach(), new), moved)
    if kept is not None:
        yield from kept.prepare_moves(layer.values, update, grown.to(layer.values), grown_state)
    yield averaging.prepare_copies(layer, averages)
    yield foreign_writes.prepare_observer(layer, update)


def layer_view(
    name: str,
    layer: SparseMatrix,
    generator: torch.Generator,
    gradient: Tensor | None = None,
    passes: Passes = (),
    sum_over_ranks: Callable[[Tensor], Tensor] = alone,
) -> LayerView:
    """What the rules may see of `layer`."""
    flat, values = layer.flat(), layer.values.detach()
    survives = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    window = layer.window
    return LayerView(
        name, layer.shape, flat, values, survives, generator, gradient, passes, sum_over_ranks, window=window
    )
