"""Moves and resets elementwise optimizer buffers: those of a weight's shape, one entry for each connection."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, Adagrad, Optimizer, Rprop

from sparsify.evolution.evolve import Update
from sparsify.topology import fingerprint

if TYPE_CHECKING:
    from sparsify.linear import SparseLinear

GrownState = Literal["zero", "mean"]

SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "variance"}
"""Buffers of squared or absolute gradients, by the names that torch.optim gives them."""

MATRICES = "it treats a weight as a matrix, and a sparse layer's values are a vector"
UNSUPPORTED = {
    "Muon": MATRICES,
    "Shampoo": MATRICES,
    "ScalableShampoo": MATRICES,
    "DistributedShampoo": MATRICES,
    "SOAP": MATRICES,
    "ZeroRedundancyOptimizer": "it holds the state of some layers only, in an optimizer of its own",
    "SparseAdam": "it takes sparse gradients, and the gradient of a sparse layer's values is a dense vector",
}
"""By class name, because torch's own Muon is new and there are others of that name."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise TypeError if `optimizer` cannot train a vector of connections."""
    for kind in optimizer.__class__.__mro__:
        if kind.__name__ in UNSUPPORTED:
            raise TypeError(
                f"optimizer must work elementwise, got {kind.__name__}: {UNSUPPORTED[kind.__name__]}. "
                "Use SGD, Adam or another elementwise optimizer for the Linear layers."
            )


def check_elementwise(optimizer: Optimizer, parameter: Tensor, layer: str) -> None:
    """Raise TypeError if a buffer that `optimizer` holds for `parameter` is neither elementwise nor a scalar."""
    if isinstance(optimizer, LBFGS):
        return  # its history is dropped, not moved
    for key, buffer in optimizer.state.get(parameter, {}).items():
        tensors = [buffer] if isinstance(buffer, Tensor) else _tensors_within(buffer)
        nested = not isinstance(buffer, Tensor)
        for tensor in tensors:
            if tensor.dim() and (nested or (tensor.numel() != 1 and tensor.shape != parameter.shape)):
                raise TypeError(
                    f"optimizer must hold elementwise state, got {type(optimizer).__name__} with {key!r} of shape "
                    f"{tuple(tensor.shape)} for a weight of {tuple(parameter.shape)} in layer {layer!r}. "
                    "Leave the layer dense with skip=, or choose another optimizer."
                )


def part(state: dict[str, Any], shape: torch.Size, take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The state of a part of a parameter of `shape`: `take` gives its part of each elementwise buffer."""
    return {
        key: take(buffer) if isinstance(buffer, Tensor) and buffer.shape == shape else copy.deepcopy(buffer)
        for key, buffer in state.items()
    }


@torch.no_grad()
def move(optimizer: Optimizer, values: nn.Parameter, update: Update, grown: Tensor, grown_state: GrownState) -> None:
    """Move every buffer of `values` to its new order; regrown connections find what a new weight would find.

    That is zero, but for buffers whose optimizer starts them elsewhere (Rprop's step size, Adagrad's accumulator,
    ASGD's average); with `grown_state="mean"` second moments take the mean of the survivors' instead.

    Args:
        values: after the move of the values themselves; the buffers are still in the old order.
        grown: values of the grown connections.
    """
    if isinstance(optimizer, LBFGS):
        forget(optimizer, values)
        return
    group = next(group for group in optimizer.param_groups if any(values is p for p in group["params"]))
    state = optimizer.state.get(values, {})
    for key, buffer in state.items():
        if isinstance(buffer, Tensor) and buffer.shape == (update.old_nnz,):
            if grown_state == "mean" and key in SECOND_MOMENTS and len(update.kept):
                fresh = buffer[update.kept].mean().expand(len(grown))
            else:
                fresh = _fresh(optimizer, group, key, grown)
            moved = update.move(buffer, fresh.to(buffer))
            if moved.shape == buffer.shape:
                buffer.copy_(moved)
            else:
                state[key] = moved


def digests(optimizer: Optimizer, layers: Mapping[str, "SparseLinear"]) -> dict[str, str]:
    """A short hash of each layer's buffers."""
    states = {name: optimizer.state.get(layer.values, {}) for name, layer in layers.items()}
    return {
        name: fingerprint(*(buffer for buffer in state.values() if isinstance(buffer, Tensor)))
        for name, state in states.items()
    }


def forget(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Start the state of `parameter` afresh; says whether there was any. LBFGS has one history for all parameters."""
    if isinstance(optimizer, LBFGS):
        had_any = bool(optimizer.state)
        optimizer.state.clear()
        return had_any
    return bool(optimizer.state.pop(parameter, None))


def _fresh(optimizer: Optimizer, group: dict[str, Any], key: str, grown: Tensor) -> Tensor:
    if isinstance(optimizer, Rprop) and key == "step_size":
        return torch.full_like(grown, float(group["lr"]))
    if isinstance(optimizer, Adagrad) and key == "sum":
        return torch.full_like(grown, group["initial_accumulator_value"])
    if isinstance(optimizer, ASGD) and key == "ax":
        return grown
    return torch.zeros_like(grown)


def _tensors_within(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, dict):
        nested = list(nested.values())
    return [tensor for part in nested for tensor in _tensors_within(part)] if isinstance(nested, (list, tuple)) else []
