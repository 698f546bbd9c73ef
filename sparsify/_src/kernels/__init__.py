"""The sparse products and their gradients: one dispatch, one autograd rule, several kernels that compute.

A kernel is a module with `available()`, `serves(values)`, and the two products

    forward(input, values, bias, indices) -> output
    backward(grad, input, values, indices, needs) -> gradients of input, values and bias; None where not needed

for input (batch, in_features), output and grad (batch, out_features), all contiguous.
"""

import torch
from torch import Tensor

from sparsify._src.kernels import autograd, flops  # noqa: F401  (flops registers formulas)
from sparsify._src.kernels.autograd import direct
from sparsify._src.kernels.dispatch import available, kernel_for, use
from sparsify._src.kernels.operands import SUPPORTED, is_simple
from sparsify._src.kernels.recorder import Recorder
from sparsify._src.topology import Indices

__all__ = [
    "SUPPORTED",
    "Recorder",
    "available",
    "direct",
    "gradient_of_values",
    "is_simple",
    "sparse_linear",
    "use",
]

HALF = (torch.bfloat16, torch.float16)


def sparse_linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias` for a weight of sorted connections; differentiable in input, values and bias.

    Shape:
        input (*, in_features) -> (*, out_features), contiguous; values (nnz,).
    """
    dtype = input.dtype
    if input.dim() == 2 and dtype not in HALF:
        return autograd.sparse_linear(input, values, bias, indices)
    if dtype in HALF:
        input, values = input.float(), values.float()
        bias = None if bias is None else bias.float()
    output = autograd.sparse_linear(input.reshape(-1, input.shape[-1]), values, bias, indices)
    return output.view(*input.shape[:-1], output.shape[1]).to(dtype)


def gradient_of_values(grad: Tensor, input: Tensor, indices: Indices) -> Tensor:
    """Elements of `grad.T @ input` at the connections alone, (nnz,): the gradient of values there.

    Shape:
        grad (batch, out_features), input (batch, in_features); float32 or float64.
    """
    zeros = grad.new_zeros(len(indices.col))
    result: Tensor = kernel_for(zeros).backward(grad, input, zeros, indices, (False, True, False))[1]
    return result
