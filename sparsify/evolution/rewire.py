"""Where an `Update` is carried out: values, gradient, topology and optimizer buffers move together, here only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsify import averaging, optimizer_state, topology
from sparsify.evolution.algorithms import check_fraction
from sparsify.evolution.drop import magnitude
from sparsify.evolution.evolve import Update, replaced
from sparsify.evolution.growth import uniformly
from sparsify.evolution.scopes import lowest_of_each_sign
from sparsify.evolution.view import LayerView, Passes, alone
from sparsify.linear import SparseLinear
from sparsify.matrix import SparseMatrix
from sparsify.optimizer_state import GrownState


@torch.no_grad()
def rewire(
    layer: SparseMatrix,
    update: Update,
    grown: Tensor,
    optimizer: Optimizer | None = None,
    grown_state: GrownState = "zero",
    averages: Sequence[SparseMatrix] = (),
) -> None:
    """Carry out `update`: survivors keep value, gradient and optimizer state; `grown` are the new values.

    Args:
        averages: copies of `layer` that evolve alike; see `averaging`.
    """
    update, grown = update.on(layer.values.device), grown.to(layer.values)  # an average may be elsewhere
    grad = layer.values.grad
    values = update.move(layer.values.detach(), grown)
    moved_grad = None if grad is None else update.move(grad, torch.zeros_like(grown))
    layer.rewire(update.flat, values, moved_grad)
    if optimizer is not None:
        optimizer_state.move(optimizer, layer.values, update, grown, grown_state)
    for average in averages:
        rewire(average, update, grown)
    if update.changes:
        averaging.evolved(layer, averages)


def trim(model: nn.Module, drop_fraction: float) -> nn.Module:
    """Drop each layer's weakest connections for good and grow nothing: SET's last step, for inference.

    Optimizer state is not trimmed: an optimizer that steps this model again starts the layer's state afresh.

    Args:
        model: holds sparse layers; changed in place.
        drop_fraction: share of the positive and of the negative connections to drop, in [0, 1].
    Returns:
        the model.
    Raises:
        ValueError: drop_fraction is outside [0, 1], or the model holds no sparse layer.
    Source: Mocanu et al. 2018, algorithm 1, last step.
    """
    check_fraction(drop_fraction)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not layers:
        raise ValueError("model must hold a SparseLinear, got none. Make it sparse first: sparsify(model, ...).")
    averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        seen = view(name, layer, topology.generator())
        dropped = lowest_of_each_sign(seen.values, magnitude(seen), drop_fraction)
        update = replaced(seen, dropped, 0, uniformly)
        rewire(layer, update, seen.values[:0], averages=averages[name])
    return model


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
