"""torch-sparse's own kernels: the reference, on every device it was built for."""

import torch
import torch_sparse  # noqa: F401  (registers torch.ops.torch_sparse)
from torch import Tensor


def linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: dict[str, Tensor]) -> Tensor:
    """`input @ weight.T + bias` for input (batch, in_features); the result is contiguous."""
    features_first = input.t()
    product: Tensor
    if len(input):
        row, crow, col, ccol, csc_order = (indices[name] for name in ("row", "crow", "col", "ccol", "csc_order"))
        product = torch.ops.torch_sparse.spmm_sum(row, crow, col, values, ccol, csc_order, features_first)
    else:  # torch-sparse divides by the batch size
        product = (features_first.sum(0) + values.sum()).expand(len(indices["crow"]) - 1, 0)
    output = product.t().contiguous()
    return output if bias is None else output + bias
