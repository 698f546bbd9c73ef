"""What a sparse layer is compared with in benchmark.py: the other ways to have one in PyTorch."""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_sparse import SparseTensor

from sparsify import SparseLinear, kernels


class Masked(nn.Linear):
    """A dense weight times a mask of zeros and ones: what most sparse training libraries do."""

    def __init__(self, ins: int, outs: int, density: float) -> None:
        super().__init__(ins, outs)
        self.register_buffer("mask", (torch.rand(outs, ins) < density).float())

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, ins) to (batch, outs)."""
        return F.linear(input, self.weight * self.mask, self.bias)


class TorchSparse(nn.Module):
    """A torch_sparse.SparseTensor as its own documentation uses it, columns cached."""

    def __init__(self, ins: int, outs: int, density: float) -> None:
        super().__init__()
        layer = SparseLinear(ins, outs, density)
        self.values, self.bias = nn.Parameter(layer.values.detach()), layer.bias
        self.structure: SparseTensor = layer.weight.set_value(None, layout="csr")
        self.structure.fill_cache_()

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, ins) to (batch, outs)."""
        return (self.structure.set_value(self.values, layout="csr") @ input.t()).t() + self.bias


class GatherScatter(nn.Module):
    """Synapses' way: gather an input for each connection, multiply, scatter-add to the outputs."""

    def __init__(self, ins: int, outs: int, density: float) -> None:
        super().__init__()
        layer = SparseLinear(ins, outs, density)
        self.values, self.bias = layer.values, layer.bias
        self.row, self.col, _ = layer.weight.coo()

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, ins) to (batch, outs)."""
        products = input[:, self.col] * self.values
        return input.new_zeros(len(input), len(self.bias)).index_add(1, self.row, products) + self.bias


class OtherKernels(SparseLinear):
    """Our layer, computed by other kernels."""

    kernels = "aten"

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, ins) to (batch, outs)."""
        with kernels.use(self.kernels):
            return super().forward(input)


ALIVE: list[nn.Module] = []
"""sparselab caches transposes by the id() of a layer's weight: let one die and the next may find the wrong one."""


def rivals() -> dict[str, Callable[[int, int, float], nn.Module]]:
    """Name -> (in_features, out_features, density) -> layer, of all that are installed."""
    found: dict[str, Callable[[int, int, float], nn.Module]] = {
        "masked dense": Masked,
        "torch_sparse": TorchSparse,
        "ATen CSR": OtherKernels,
        "gather-scatter": GatherScatter,
    }
    if find_spec("sparselab"):
        import sparselab

        def keep(ins: int, outs: int, density: float) -> nn.Module:
            ALIVE.append(sparselab.SparseLinear(ins, outs, sparsity=1 - density))
            return ALIVE[-1]

        found[f"sparselab {version('sparselab')}"] = keep
    if find_spec("sparseprop"):
        from sparseprop.modules import SparseLinear as SparseProp

        def convert(ins: int, outs: int, density: float) -> nn.Module:
            layer = SparseLinear(ins, outs, density)
            return SparseProp(layer.to_dense().detach(), layer.bias)

        found[f"SparseProp {version('sparseprop')}"] = convert
    return found
