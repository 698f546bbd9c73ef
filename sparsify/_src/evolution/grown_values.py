"""Grown values: what new connections start from."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify._src.ready_made import GROWN_VALUES, check_rule
from sparsify._src.topology import Shape

GrownValues = Callable[[int, Shape, int, torch.Generator], Tensor]
"""(count, shape, nnz, generator) -> values (count,) of the grown connections."""

Named = Literal["zero", "fan_in_uniform"]


def fan_in_uniform(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """`count` fresh values, uniform in ±1/sqrt(mean sparse fan-in): nn.Linear's rule at the sparse fan-in.

    Example:
        >>> values = fan_in_uniform(1000, shape=(10, 400), nnz=40, generator=torch.Generator())
        >>> values.shape, bool((values.abs() <= 0.5).all())  # four connections a unit
        (torch.Size([1000]), True)
    """
    bound = math.sqrt(shape[0] / max(1, nnz))
    return torch.empty(count, device="cpu").uniform_(-bound, bound, generator=generator)


def zeros(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """Start grown connections at zero: the function that the network computes does not jump.

    Example:
        >>> zeros(3, shape=(10, 400), nnz=40, generator=torch.Generator())
        tensor([0., 0., 0.])
    """
    return torch.zeros(count, device="cpu")


NAMED: dict[Named, GrownValues] = {"zero": zeros, "fan_in_uniform": fan_in_uniform}


def grown_values_of(given: Any) -> GrownValues:
    """The function that a user has given, or named."""
    if isinstance(given, str) and given in NAMED:
        return NAMED[given]
    check_rule("grown_values", given, GROWN_VALUES, ", ".join(f'"{name}"' for name in NAMED))
    function: GrownValues = given
    return function
