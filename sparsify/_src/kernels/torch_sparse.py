"""torch-sparse's own kernels: the reference, on every device it was built for."""

from functools import cache

import torch
from torch import Tensor

from sparsify._src import lazy
from sparsify._src.kernels.operands import held
from sparsify._src.topology import Indices, rows

GATHERED = 2**18
"""Activations that are gathered together for the values' gradient: what bounds its memory, and fits a cache."""


def available() -> bool:
    """Whether torch-sparse can be imported, which this tries."""
    return lazy.is_importable()


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    if values.device.type != "cuda":
        return values.device.type == "cpu"
    return _are_built_for_cuda()


@cache
def _are_built_for_cuda() -> bool:
    return available() and bool(torch.ops.torch_sparse.cuda_version() >= 0)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`."""
    values = held(values, indices)
    output = _product(indices.crow, indices.col, values, input)
    return output if bias is None else output + bias


def backward(
    grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    values = held(values, indices)
    grad_input = grad_values = None
    if needs[0]:
        grad_input = _product(indices.ccol, indices.csc_row, values[indices.csc_order], grad)
    if needs[1]:
        # torch-sparse computes this only from inside its own autograd function, which an operator cannot enter
        row, col = rows(indices.crow, len(values)), indices.col
        of_rows, of_columns = grad.t().contiguous(), input.t().contiguous()
        parts = zip(*(torch.split(index, max(1, GATHERED // max(1, len(input)))) for index in (row, col)), strict=True)
        grad_values = torch.cat([(of_rows[r] * of_columns[c]).sum(1) for r, c in parts] or [values])
    return grad_input, grad_values, grad.sum(0) if needs[2] else None


def _product(start: Tensor, index: Tensor, values: Tensor, input: Tensor) -> Tensor:
    """`input @ matrix.T` for a matrix in CSR."""
    if not len(input):  # torch-sparse divides by the batch size
        return input.new_empty(0, len(start) - 1)
    lazy.torch_sparse()  # registers its operators
    values, features_first = values.detach(), input.detach().t().contiguous()  # or it wants more, to differentiate
    product = torch.ops.torch_sparse.spmm_sum(None, start.long(), index.long(), values, None, None, features_first)
    output: Tensor = product.t().contiguous()
    return output
