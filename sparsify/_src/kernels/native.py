"""Our own CPU kernels (product.c), for float32 and float64."""

import torch
from torch import Tensor

from sparsify._src.native import library
from sparsify._src.native.library import Product, address
from sparsify._src.topology import Indices, Located

LEVEL: int = library.LIBRARY.sparsify_level() if library.LIBRARY else 0
"""Of the instruction sets: 0 the baseline, 1 AVX2 with FMA, 2 AVX-512."""


def available() -> bool:
    """Whether the library was compiled."""
    return library.LIBRARY is not None


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return available() and values.is_cpu and values.dtype in (torch.float32, torch.float64)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`."""
    output = input.new_empty(input.shape[0], indices.crow.numel() - 1)
    if output.numel():
        _call(False, indices, values, bias, input, None, output, None, None)
    return output


def backward(
    grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    if not needs[0] and not needs[1]:
        return None, None, grad.sum(0) if needs[2] else None
    batch, outs = grad.shape
    grad_input = torch.empty_like(input) if needs[0] else None
    grad_values = (torch.empty_like if batch else torch.zeros_like)(values) if needs[1] else None
    grad_bias = grad.new_zeros(outs) if needs[2] else None
    if batch:
        _call(True, indices, values, None, input, grad, grad_input, grad_values, grad_bias)
    return grad_input, grad_values, grad_bias


def _call(
    backward: bool,
    indices: Indices,
    values: Tensor,
    bias: Tensor | None,
    input: Tensor,
    grad: Tensor | None,
    *results: Tensor | None,
) -> None:
    held: list[object] = []
    batch, ins = input.shape
    outs, nnz, real = indices.crow.numel() - 1, indices.col.numel(), values.itemsize
    starts, index, order = (_csc if backward else _csr)(indices, outs, ins, nnz, held)
    product = Product(
        *(outs, ins, batch, nnz),
        *(starts, index, order),
        address(values, nnz * real, held),
        None if bias is None else address(bias, outs * real, held),
        address(input, batch * ins * real, held),
        None if grad is None else address(grad, batch * outs * real, held),
        *[None if result is None else result.data_ptr() for result in results],
        *(LEVEL, real, indices.crow.itemsize, library.threads(batch * (nnz + ins + outs)), backward),
    )
    library.call("sparsify_linear", product)


def _csr(indices: Indices, outs: int, ins: int, nnz: int, held: list[object]) -> tuple[int, int, None]:
    """Addresses of the indices that the forward product reads."""
    crow, col, *_ = indices
    if type(indices) is Located and indices.addresses:
        at_crow, at_col, *_ = indices.addresses
        if crow.data_ptr() == at_crow and col.data_ptr() == at_col:
            return at_crow, at_col, None
    return _address(crow, outs + 1, held), _address(col, nnz, held), None


def _csc(indices: Indices, outs: int, ins: int, nnz: int, held: list[object]) -> tuple[int, int, int]:
    """Addresses of the indices that the backward products read."""
    _, _, ccol, csc_row, csc_order = indices
    if type(indices) is Located and indices.addresses:
        _, _, at_ccol, at_row, at_order = indices.addresses
        if ccol.data_ptr() == at_ccol and csc_row.data_ptr() == at_row and csc_order.data_ptr() == at_order:
            return at_ccol, at_row, at_order
    return _address(ccol, ins + 1, held), _address(csc_row, nnz, held), _address(csc_order, nnz, held)


def _address(index: Tensor, length: int, held: list[object]) -> int:
    return address(index, length * index.itemsize, held)
