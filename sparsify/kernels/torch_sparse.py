"""torch-sparse's own kernels: the reference, on every device it was built for."""

import torch
import torch_sparse  # noqa: F401  (registers torch.ops.torch_sparse)
from torch import Tensor

from sparsify.topology import Indices, rows


def available() -> bool:
    """Always: sparsify depends on it."""
    return True


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return values.device.type == "cpu" or (values.device.type == "cuda" and torch.ops.torch_sparse.cuda_version() >= 0)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`; differentiable as it stands."""
    crow, col, ccol, csc_row, csc_order = (index.long() for index in indices)
    features_first = input.t()
    product: Tensor
    if len(input):
        row = rows(crow, len(col))
        product = torch.ops.torch_sparse.spmm_sum(row, crow, col, values, ccol, csc_order, features_first)
    else:  # torch-sparse divides by the batch size
        product = (features_first.sum(0) + values.sum()).expand(len(crow) - 1, 0)
    output = product.t().contiguous()
    return output if bias is None else output + bias


def backward(
    grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed; computes the product again to differentiate it."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(need) for t, need in zip((input, values), needs, strict=False)]
        product = forward(leaves[0], leaves[1], None, indices)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(product, wanted, grad) if wanted else ())
    grad_input, grad_values = (next(found) if need else None for need in needs[:2])
    return grad_input, grad_values, grad.sum(0) if needs[2] else None
