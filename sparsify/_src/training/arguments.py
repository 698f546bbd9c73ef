"""Checks an optimizer that is to be wrapped, before anything is changed."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsify._src.torch_private import step_hooks
from sparsify._src.training import holders
from sparsify._src.training.steps import is_of_a_trainer, tells_of_steps


def is_wrapped(optimizer: object) -> bool:
    """Whether `optimizer` is a SparseOptimizer."""
    return hasattr(optimizer, "_self_evolver")


def unwrapped(optimizers: Iterable[Any]) -> list[Any]:
    """What `sparsify` has wrapped, without the wrapping."""
    return [each.__wrapped__ if is_wrapped(each) else each for each in optimizers]


def check_optimizer(optimizer: object) -> None:
    """Raise unless a SparseOptimizer can wrap `optimizer`."""
    if is_wrapped(optimizer):
        raise TypeError("optimizer must not be wrapped already, got a SparseOptimizer. Pass the original optimizer.")
    inside = holders.optimizers(optimizer)
    if not isinstance(optimizer, Optimizer) and len(inside) < 2:
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {_named(optimizer)}.{_way_out(optimizer)}")
    if is_of_a_trainer(optimizer):
        raise TypeError(
            f"optimizer must be the original one, got {type(optimizer).__name__}, a trainer's. Call sparsify() before "
            "the trainer wraps it."
        )
    for each in inside:
        hooks = step_hooks(each) or {}
        if is_wrapped(each) or any(hasattr(hook, "of_sparsify") for hook in hooks.values()):
            raise TypeError(
                "optimizer must not be wrapped already, got one that sparsify() wrapped. Use what it returned."
            )
    if not any(map(tells_of_steps, inside)):
        raise TypeError(
            f"optimizer must tell of its steps, got {type(optimizer).__name__}, which calls no step hooks, and "
            "holds no torch.optim.Optimizer that does. Call Optimizer.__init__ in its constructor."
        )


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _way_out(value: object) -> str:
    if isinstance(value, type):
        return f" Make one: {value.__name__}(model.parameters(), ...)."
    if isinstance(value, nn.Module):
        return " The order is sparsify(model, optimizer, density)."
    if isinstance(value, (Real, Mapping)) or callable(value):
        return " If that is the density, name it: sparsify(model, density=...)."
    return " Make one of the model's parameters, such as torch.optim.AdamW(model.parameters())."
