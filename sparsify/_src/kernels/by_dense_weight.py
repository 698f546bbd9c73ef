"""Products by PyTorch's own operators, of a dense weight that exists as long as a call.

Convolutions are computed so where our kernels cannot: right on every device, at what a dense convolution costs in time,
and in memory for the weight. Exporters take linear layers so too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsify._src.kernels.operands import held
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices


def _weight(values: Tensor, indices: Indices) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The dense weight (rows, columns), and row and column of the connections; in operators that can be traced."""
    row = indices.csc_row.scatter(0, indices.csc_order.long(), indices.csc_row).long()
    places = row, indices.col.long()
    zeros = values.new_zeros(indices.crow.shape[0] - 1, indices.ccol.shape[0] - 1)
    return zeros.index_put(places, values), places


def product(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window | None) -> Tensor:
    """`input @ weight.T + bias`, or the convolution by a window, for who knows ATen's operators alone: torch.onnx."""
    weight, _ = _weight(values, indices)
    return F.linear(input, weight, bias) if window is None else window.dense(input, weight, bias)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window) -> Tensor:
    """The convolution of input (batch, in_channels, *size)."""
    with torch.autocast(input.device.type, enabled=False):  # it has cast already what it is to cast
        return product(input, held(values, indices), bias, indices, window).contiguous()


def backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: tuple[bool, bool, bool],
    window: Window,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias of the convolution, as far as needed."""
    matrix, places = _weight(held(values, indices), indices)
    weight = matrix.view(window.weight_shape((matrix.shape[0], matrix.shape[1])))
    dims = len(window.kernel_size)
    geometry = window.stride, window.padding, window.dilation, False, [0] * dims, window.groups
    with torch.autocast(input.device.type, enabled=False):
        of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, input, weight, [len(matrix)], *geometry, list(needs)
        )
    of_values = of_weight.view_as(matrix)[places] if needs[1] else None
    return of_input.contiguous() if needs[0] else None, of_values, of_bias if needs[2] else None
