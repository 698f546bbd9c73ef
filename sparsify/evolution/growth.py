"""Growth rules: where new connections grow."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.topology import Shape, sample_outside

GrowthRule = Callable[[Tensor, Shape, int, torch.Generator], Tensor]
"""(flat topology (nnz,), shape, count, generator) -> `count` flat indices outside the topology, sorted."""


def uniformly(flat: Tensor, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Grow `count` connections uniformly at random where there are none: SET's rule.

    Args:
        flat: the topology before the drop, sorted, (nnz,): what was just dropped is not grown again.
        shape: (out_features, in_features).
        count: how many; at most out_features * in_features - nnz.
        generator: on the CPU.
    Returns:
        flat indices, sorted, (count,) int64.
    Raises:
        ValueError: fewer than `count` places are free.
    """
    return sample_outside(flat, shape[0] * shape[1], count, generator)
