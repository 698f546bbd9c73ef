"""Grown values: what new connections start from."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsify._src.topology import Shape

GrownValues = Callable[[int, Shape, int, torch.Generator], Tensor]
"""(count, shape, nnz, generator) -> values (count,) of the grown connections."""


def fan_in_uniform(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """`count` fresh values, uniform in ±1/sqrt(mean sparse fan-in): nn.Linear's rule at the sparse fan-in.

    Example:
        >>> values = fan_in_uniform(1000, shape=(10, 400), nnz=40, generator=torch.Generator())
        >>> values.shape, bool((values.abs() <= 0.5).all())  # four connections a unit
        (torch.Size([1000]), True)
        >>> SET(grown_values=fan_in_uniform)
        SET(grown_values=fan_in_uniform)
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
