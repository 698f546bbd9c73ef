"""Where the values of new connections and layers come from."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsify import topology
from sparsify.topology import Shape

GrownValues = Callable[[int, Shape, int, torch.Generator], Tensor]
"""(count, shape, nnz, generator) -> values (count,) of the grown connections."""


def drawn_generator() -> torch.Generator:
    """A generator seeded by the next number of torch's global one, as nn.Linear draws its initial values."""
    return topology.generator(torch.randint(2**63 - 1, (), device="cpu").item())


def fan_in_uniform(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """`count` fresh values, uniform in ±1/sqrt(mean sparse fan-in): nn.Linear's rule at the sparse fan-in."""
    bound = math.sqrt(shape[0] / max(1, nnz))
    return torch.empty(count, device="cpu").uniform_(-bound, bound, generator=generator)


def zeros(count: int, shape: Shape, nnz: int, generator: torch.Generator) -> Tensor:
    """Start grown connections at zero: the function that the network computes does not jump."""
    return torch.zeros(count, device="cpu")


def drawn(shape: Shape, nnz: int, bias: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw topology, values and bias of a new layer, on the CPU: nn.Linear's rule, the values at the sparse fan-in."""
    flat = topology.sample(shape[0] * shape[1], nnz, generator)
    values, bound = fan_in_uniform(nnz, shape, nnz, generator), 1 / math.sqrt(shape[1])
    empty = torch.empty(shape[0] if bias else 0, device="cpu")
    return flat, values, empty.uniform_(-bound, bound, generator=generator) if bias else None
