"""Grown values: what new connections start from."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.topology import Shape

GrownValues = Callable[[int, Shape, int, torch.Generator], Tensor]
"""(count, shape, nnz, generator) -> values (count,) of the grown connections."""


def fan_in_uniform(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """`count` fresh values, uniform in ±1/sqrt(mean sparse fan-in): nn.Linear's rule at the sparse fan-in."""
    bound = math.sqrt(shape[0] / max(1, nnz))
    return torch.empty(count, device="cpu").uniform_(-bound, bound, generator=generator)


def zeros(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """Start grown connections at zero: the function that the network computes does not jump."""
    return torch.zeros(count, device="cpu")
