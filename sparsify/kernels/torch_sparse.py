"""torch-sparse's own kernels: the reference, on every device it was built for."""

import torch
import torch_sparse  # noqa: F401  (registers torch.ops.torch_sparse)
from torch import Tensor

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    *,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    csc_order: Tensor,
) -> Tensor:
    """`input @ weight.T + bias` for a weight of sorted connections; differentiable in input, values and bias.

    Half-precision products are accumulated in float32.

    Shape:
        input (*, in_features) -> (*, out_features); values, row, col and csc_order (nnz,); crow (out_features + 1,);
        ccol (in_features + 1,).
    """
    dtype = input.dtype
    if dtype in (torch.bfloat16, torch.float16):
        input, values = input.float(), values.float()
        bias = None if bias is None else bias.float()
    features_first = input.reshape(-1, input.shape[-1]).t()
    product: Tensor
    if features_first.shape[1]:
        product = torch.ops.torch_sparse.spmm_sum(row, crow, col, values, ccol, csc_order, features_first)
    else:  # torch-sparse divides by the batch size
        product = (features_first.sum(0) + values.sum()).expand(len(crow) - 1, 0)
    output = product.t().contiguous()
    output = output if bias is None else output + bias
    return output.reshape(*input.shape[:-1], len(crow) - 1).to(dtype)
