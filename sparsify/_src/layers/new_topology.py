"""A topology that is ready to take the place of a matrix's own, with the values that belong to it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsify._src.layers import overwriting
from sparsify._src.topology import Digest, Indices


class Holder(Protocol):
    """A `SparseMatrix`, as far as its topology is replaced."""

    _buffers: dict[str, Tensor | None]

    def _trust(self, digest: Digest) -> None: ...


@dataclass(frozen=True, eq=False)
class NewTopology:
    """A change of a matrix: called, it puts all of this in its place.

    matrix, parameter: whose topology and values it replaces.
    indices, digest: of the topology.
    values: (nnz,), and their gradient; None for none.
    """

    matrix: Holder
    parameter: nn.Parameter
    indices: Indices
    digest: Digest
    values: Tensor
    grad: Tensor | None

    def __call__(self) -> None:
        with torch.inference_mode(self.parameter.is_inference()), torch.no_grad():
            overwriting.put_values(self.parameter, self.values, self.grad)
            overwriting.put_indices(self.matrix._buffers, self.indices)
        self.matrix._trust(self.digest)
