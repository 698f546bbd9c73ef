"""Our own CPU kernels (native.c), for float32 and float64."""

import torch
from torch import Tensor

from sparsify import library
from sparsify.topology import Indices

LEVEL: int = library.LIBRARY.sparsify_level() if library.LIBRARY else 0
"""Of the instruction sets: 0 the baseline, 1 AVX2 with FMA, 2 AVX-512."""


def available() -> bool:
    """Whether the library was compiled."""
    return library.LIBRARY is not None


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return available() and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`."""
    output = input.new_empty(len(input), len(indices.crow) - 1)
    if output.numel():
        index = indices.crow, indices.col, None
        _call(False, output.shape[1], index, values, bias, input, None, output, None, None)
    return output


def backward(
    grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    if not needs[0] and not needs[1]:
        return None, None, grad.sum(0) if needs[2] else None
    grad_input = torch.empty_like(input) if needs[0] else None
    grad_values = (torch.empty_like if len(input) else torch.zeros_like)(values) if needs[1] else None
    grad_bias = grad.new_zeros(grad.shape[1]) if needs[2] else None
    if len(input):
        index = indices.ccol, indices.csc_row, indices.csc_order
        _call(True, grad.shape[1], index, values, None, input, grad, grad_input, grad_values, grad_bias)
    return grad_input, grad_values, grad_bias


def _call(
    backward: bool,
    out_features: int,
    index: tuple[Tensor, Tensor, Tensor | None],
    values: Tensor,
    bias: Tensor | None,
    input: Tensor,
    *rest: Tensor | None,
) -> None:
    batch, in_features = input.shape
    nnz = values.shape[0]
    kinds = LEVEL, values.itemsize, index[0].itemsize, backward
    threads = library.threads(batch * (nnz + in_features + out_features))
    library.call(
        "sparsify_linear", *kinds, out_features, in_features, batch, nnz, threads, *index, values, bias, input, *rest
    )
