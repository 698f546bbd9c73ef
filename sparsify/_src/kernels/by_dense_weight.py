"""Convolutions by PyTorch's own, of a dense weight that exists as long as a call: where our kernels cannot compute.

It is right on every device, and costs what a dense convolution does, in time and in memory for the weight.
"""

import torch
from torch import Tensor

from sparsify._src.kernels.operands import held
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices, rows


def _matrix(values: Tensor, indices: Indices) -> tuple[Tensor, Tensor]:
    """The dense weight (out_channels, columns), and the flat places of the connections."""
    outs, columns = len(indices.crow) - 1, len(indices.ccol) - 1
    flat = rows(indices.crow, len(values)) * columns + indices.col
    return values.new_zeros(outs * columns).index_put_((flat,), values).view(outs, columns), flat


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window) -> Tensor:
    """The convolution of input (batch, in_channels, *size)."""
    matrix, _ = _matrix(held(values, indices), indices)
    with torch.autocast(input.device.type, enabled=False):  # it has cast already what it is to cast
        return window.dense(input, matrix, bias).contiguous()


def backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: tuple[bool, bool, bool],
    window: Window,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    matrix, flat = _matrix(held(values, indices), indices)
    weight = matrix.view(window.weight_shape((matrix.shape[0], matrix.shape[1])))
    dims = len(window.kernel_size)
    geometry = window.stride, window.padding, window.dilation, False, [0] * dims, window.groups
    with torch.autocast(input.device.type, enabled=False):
        of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, input, weight, [len(matrix)], *geometry, list(needs)
        )
    of_values = of_weight.flatten()[flat] if needs[1] else None
    return of_input.contiguous() if needs[0] else None, of_values, of_bias if needs[2] else None
