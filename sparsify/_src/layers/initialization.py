"""Where topology, values and bias of a new layer come from."""

import math

import torch
from torch import Tensor

from sparsify._src import vectors
from sparsify._src.evolution.grown_values import fan_in_uniform
from sparsify._src.topology import Shape


def drawn_generator() -> torch.Generator:
    """A generator seeded by the next number of torch's global one, as nn.Linear draws its initial values."""
    return vectors.generator(torch.randint(2**63 - 1, (), device="cpu").item())


def drawn(shape: Shape, nnz: int, bias: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Draw topology, values and bias of a new layer, on the CPU: nn.Linear's rule, the values at the sparse fan-in."""
    flat = vectors.sample(shape[0] * shape[1], nnz, generator)
    values = fan_in_uniform(nnz, shape, nnz, generator)
    return flat, values, drawn_bias(shape, generator) if bias else None


def drawn_bias(shape: Shape, generator: torch.Generator) -> Tensor:
    """Draw the bias of a new layer, on the CPU: nn.Linear's rule."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape[0], device="cpu").uniform_(-bound, bound, generator=generator)


def real_device() -> torch.device:
    """Where what was on the meta device goes: torch's default device, the CPU where that is meta itself."""
    default = torch.get_default_device()
    return torch.device("cpu") if default.type == "meta" else default
