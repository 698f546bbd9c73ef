"""Which layers train: only these evolve, and every other one rests."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sparsify.optimizer_state import group_of


def able(optimizers: Sequence[Any], parameters: Mapping[str, Tensor]) -> set[str]:
    """The layers that can train: not frozen, in a param group, with a learning rate that is not 0.

    Args:
        optimizers: one inside another; the innermost that holds a parameter says its learning rate.
        parameters: layer name -> its values.
    """
    return {name for name, values in parameters.items() if values.requires_grad and _has_rate(optimizers, values)}


def with_gradient(parameters: Mapping[str, Tensor]) -> set[str]:
    """The layers that a backward pass has given a gradient that is not all zero."""
    return {
        name
        for name, values in parameters.items()
        if values.requires_grad and values.grad is not None and bool(values.grad.any())
    }


def _has_rate(optimizers: Sequence[Any], values: Tensor) -> bool:
    groups = (group_of(each, values) for each in reversed(optimizers))
    group = next((group for group in groups if group is not None), None)
    return group is not None and (group.get("lr") is None or bool(group["lr"] != 0))
