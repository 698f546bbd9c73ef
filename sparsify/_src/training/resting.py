"""Which layers train: only these evolve, and every other one rests."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def able(optimizers: Sequence[Any], parameters: Mapping[str, Tensor]) -> set[str]:
    """The layers that can train: not frozen, in a param group, with a learning rate that is not 0.

    Args:
        optimizers: the outermost first; the innermost that holds a parameter says its learning rate.
        parameters: layer name -> its values.
    """
    groups = {id(p): group for each in optimizers for group in each.param_groups for p in group["params"]}
    rates = {name: groups[id(p)].get("lr") for name, p in parameters.items() if p.requires_grad and id(p) in groups}
    return {name for name, rate in rates.items() if rate is None or bool(rate != 0)}


def with_gradient(parameters: Mapping[str, Tensor]) -> set[str]:
    """The layers that a backward pass has given a gradient that is not all zero."""
    return {
        name
        for name, values in parameters.items()
        if values.requires_grad and values.grad is not None and bool(values.grad.any())
    }
