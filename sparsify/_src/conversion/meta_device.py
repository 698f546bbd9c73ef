"""Models built on the meta device: their sparse layers never exist dense, and the rest is allocated here."""

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sparsify._src.layers.initialization import real_device


def check(model: nn.Module, replaced: Container[nn.Module]) -> None:
    """Raise unless every tensor on the meta device belongs to a module that can initialise it.

    Args:
        model: as the user built it.
        replaced: its modules that become sparse; they bring their own tensors.
    Raises:
        ValueError: names the tensors.
    """
    lost = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if module not in replaced and _reset(module) is None
        for name, _ in _on_meta(module)
    ]
    if lost:
        raise ValueError(
            f"model must be able to initialise what is on the meta device, got {', '.join(lost)} in modules without "
            "reset_parameters(). Give them one, or build them on a real device."
        )


def materialize(model: nn.Module, undo: ExitStack) -> dict[nn.Parameter, nn.Parameter]:
    """Allocate every tensor that is still on the meta device, and let its module initialise it.

    Args:
        model: changed in place.
        undo: learns how to take it back.
    Returns:
        each parameter that was replaced -> the new one.
    Raises:
        ValueError: a module's reset_parameters() left a tensor as it was allocated.
    """
    new: dict[Tensor, Tensor] = {}
    waiting = [(prefix, module) for prefix, module in model.named_modules() if any(_on_meta(module))]
    for _, module in waiting:
        for name, tensor in list(_on_meta(module)):
            home = module._parameters if name in module._parameters else module._buffers
            if tensor not in new:
                blank = torch.zeros_like(tensor, device=real_device())
                blank = blank.fill_(torch.nan) if blank.is_floating_point() else blank
                parameter = isinstance(tensor, nn.Parameter)
                new[tensor] = nn.Parameter(blank, tensor.requires_grad) if parameter else blank
            undo.callback(home.__setitem__, name, tensor)
            home[name] = new[tensor]
    for _, module in reversed(waiting):  # children first: a parent may set what is theirs
        reset = _reset(module)
        assert reset is not None  # `check` has seen to it
        reset()
    allocated = {id(tensor) for tensor in new.values()}
    for prefix, module in waiting:
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if id(tensor) in allocated and tensor.isnan().any():
                raise ValueError(
                    f"{type(module).__name__}.reset_parameters() must initialise {prefix}.{name}, got it left as it "
                    "was allocated. Build the module on a real device."
                )
    return {
        old: tensor for old, tensor in new.items() if isinstance(old, nn.Parameter) and isinstance(tensor, nn.Parameter)
    }


def _on_meta(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and tensor.is_meta:
            yield name, tensor


def _reset(module: nn.Module) -> Callable[[], None] | None:
    """The module's own initialisation; nn.MultiheadAttention's has an underscore, ours leaves the projections alone."""
    names = "reset_own_biases", "reset_parameters", "_reset_parameters"
    return next((method for name in names if (method := getattr(module, name, None)) is not None), None)
