"""The sparse products and their gradients: one dispatch, one autograd rule, several kernels that compute.

A kernel is a module with `available()`, `serves(values)`, and the two products

    forward(input, values, bias, indices) -> output
    backward(grad, input, values, indices, needs) -> gradients of input, values and bias; None where not needed

for input (batch, in_features), output and grad (batch, out_features), all contiguous. The native one convolves too, for
input (batch, in_channels, *size); where it cannot serve, PyTorch's own convolution does, by a dense weight.
"""

import torch
from torch import Tensor

from sparsify._src.kernels import autograd, flops  # noqa: F401  (flops registers formulas)
from sparsify._src.kernels.autograd import direct
from sparsify._src.kernels.computing import gradient_of_values
from sparsify._src.kernels.dispatch import available, use
from sparsify._src.kernels.operands import SUPPORTED, is_simple
from sparsify._src.kernels.recorder import Recorder
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices

__all__ = [
    "SUPPORTED",
    "Recorder",
    "Window",
    "available",
    "direct",
    "gradient_of_values",
    "is_simple",
    "sparse_convolution",
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
        return autograd.product(input, values, bias, indices)
    if dtype in HALF:
        input, values = input.float(), values.float()
        bias = None if bias is None else bias.float()
    output = autograd.product(input.reshape(-1, input.shape[-1]), values, bias, indices)
    return output.view(*input.shape[:-1], output.shape[1]).to(dtype)


def sparse_convolution(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window) -> Tensor:
    """The convolution by a weight of sorted connections, padded with zeros; differentiable as `sparse_linear`.

    Shape:
        input (batch, in_channels, *size) -> (batch, out_channels, *out_size), contiguous; values (nnz,).
    """
    dtype = input.dtype
    if dtype not in HALF:
        return autograd.product(input, values, bias, indices, window)
    bias = None if bias is None else bias.float()
    return autograd.product(input.float(), values.float(), bias, indices, window).to(dtype)
