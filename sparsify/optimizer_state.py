"""Moves and resets elementwise optimizer buffers: those of a weight's shape, one entry for each connection."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Adagrad, Optimizer, Rprop

from sparsify.evolution.evolve import Update
from sparsify.swap import Change
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


def check_state_dict(optimizer: Optimizer, lengths: Mapping[nn.Parameter, int], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, unless `state_dict` may hold the state of `optimizer`.

    Args:
        lengths: values of sparse layers -> the length of their buffers in `state_dict`.
    """
    theirs, ours, states = state_dict.get("param_groups"), optimizer.param_groups, state_dict.get("state")
    if not isinstance(theirs, (list, tuple)):
        raise ValueError(f"state_dict['param_groups'] must be a list, got {type(theirs).__name__}.")
    if not isinstance(states, Mapping):
        raise ValueError(f"state_dict['state'] must be a dict, got {type(states).__name__}.")
    sizes = [len(group["params"]) if isinstance(group, Mapping) and "params" in group else None for group in theirs]
    if sizes != [len(group["params"]) for group in ours]:
        raise ValueError(
            f"state_dict['param_groups'] must have {[len(group['params']) for group in ours]} parameters, got {sizes}."
        )
    if isinstance(optimizer, LBFGS):
        return  # one history for all parameters
    keys = [key for group in theirs for key in group["params"]]
    if odd := [key for key in keys if not isinstance(key, (int, str))]:
        raise ValueError(f"state_dict['param_groups'] must name parameters by numbers or names, got {odd[0]!r}.")
    pairs = list(zip(keys, [parameter for group in ours for parameter in group["params"]], strict=True))
    entries = {key: states.get(key, {}) for key in keys}
    for key, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"state_dict['state'][{key!r}] must be a dict, got {type(entry).__name__}.")
    known = [*entries.values(), *optimizer.state.values()]
    vectors = {name for entry in known for name, x in entry.items() if isinstance(x, Tensor) and x.dim()}
    for key, parameter in pairs:
        for name, buffer in entries[key].items() if parameter in lengths else ():
            where, nnz = f"state_dict['state'][{key!r}][{name!r}]", lengths[parameter]
            if isinstance(buffer, Tensor):
                fits = buffer.shape == (nnz,) or (buffer.numel() == 1 and name not in vectors)
                if buffer.layout != torch.strided or buffer.is_meta or not fits:
                    kind = f"{buffer.dtype} {tuple(buffer.shape)} of layout {buffer.layout} on {buffer.device}"
                    raise ValueError(
                        f"{where} must be a number or a vector of the layer's {nnz} connections, got {kind}."
                    )
            elif name in vectors and not (buffer is None and name == "momentum_buffer"):  # which SGD may have or not
                raise ValueError(f"{where} must be a tensor, got {type(buffer).__name__}.")


def part(state: dict[str, Any], shape: torch.Size, take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The state of a part of a parameter of `shape`: `take` gives its part of each elementwise buffer."""
    return {
        key: take(buffer) if isinstance(buffer, Tensor) and buffer.shape == shape else copy.deepcopy(buffer)
        for key, buffer in state.items()
    }


@torch.no_grad()
def moves(
    optimizer: Optimizer, values: nn.Parameter, update: Update, grown: Tensor, grown_state: GrownState
) -> Iterator[Change]:
    """Prepare to move every buffer of `values` to its new order; regrown connections find what a new weight would find.

    That is zero, but for buffers whose optimizer starts them elsewhere (Rprop's step size, Adagrad's accumulator,
    ASGD's average); with `grown_state="mean"` second moments take the mean of the survivors' instead.

    Args:
        grown: values of the grown connections.
    """
    group = next((group for group in optimizer.param_groups if any(values is p for p in group["params"])), None)
    if group is None:
        return
    if isinstance(optimizer, LBFGS):
        yield afresh(optimizer, values)
        return
    state = optimizer.state.get(values, {})
    for key, buffer in state.items():
        if isinstance(buffer, Tensor) and buffer.shape == (update.old_nnz,):
            if grown_state == "mean" and key in SECOND_MOMENTS and len(update.kept):
                fresh = buffer[update.kept].mean().expand(len(grown))
            else:
                fresh = _fresh(optimizer, group, key, grown)
            yield partial(_put, state, key, buffer, update.move(buffer, fresh.to(buffer)))


@torch.no_grad()
def _put(state: dict[str, Any], key: str, buffer: Tensor, moved: Tensor) -> None:
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


def has_any(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether `optimizer` holds buffers for `parameter`."""
    if isinstance(optimizer, LBFGS):
        return bool(optimizer.state)
    return any(isinstance(buffer, Tensor) for buffer in optimizer.state.get(parameter, {}).values())


def fits(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether every elementwise buffer of `parameter` has its length."""
    if isinstance(optimizer, LBFGS):
        return True
    buffers = (buffer for buffer in optimizer.state.get(parameter, {}).values() if isinstance(buffer, Tensor))
    return all(buffer.numel() == 1 or buffer.shape == parameter.shape for buffer in buffers)


def afresh(optimizer: Optimizer, parameter: Tensor, nnz: int | None = None) -> Change:
    """Prepare to start the state of `parameter` afresh. LBFGS has one history for all parameters.

    Args:
        nnz: the length that the parameter will have; None: as now.
    """
    if isinstance(optimizer, LBFGS):
        return partial(_clear, optimizer)
    momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
    if isinstance(optimizer, SGD) and isinstance(momentum, Tensor):  # fused, it takes no parameters with and without
        zeros = momentum.new_zeros(len(parameter) if nnz is None else nnz)
        return partial(optimizer.state.__setitem__, parameter, {"momentum_buffer": zeros})
    return partial(optimizer.state.pop, parameter, None)


def _clear(optimizer: LBFGS) -> None:
    optimizer.state.clear()
    optimizer._numel_cache = None


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
