"""Our own CPU kernels (product.c), for float32 and float64."""

import os

from torch import Tensor

from sparsify._src.kernels.geometry import Geometry, geometry
from sparsify._src.kernels.operands import NATIVE
from sparsify._src.kernels.window import Window
from sparsify._src.native import library
from sparsify._src.native.library import Convolution, Product, address
from sparsify._src.topology import Indices, Located

LEVEL: int = library.LIBRARY.sparsify_level() if library.LIBRARY else 0
"""Of the instruction sets: 0 the baseline, 1 AVX2 with FMA, 2 AVX-512."""

PLACES = 2**31
"""Of an image with its padding, at most."""

SHARERS = 4
"""Threads that need the same panel, at least, for them to pack it together and not each for itself."""


def _room() -> int:
    """Half of the second-level cache, whose other half what is streamed through it needs."""
    given = os.environ.get("SPARSIFY_PANEL_BYTES", "")
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"SPARSIFY_PANEL_BYTES must be a number of bytes above 0, got {given!r}.")
    name = "SC_LEVEL2_CACHE_SIZE"
    known = os.sysconf(name) if name in getattr(os, "sysconf_names", {}) else 0
    return int(given or (known if known > 0 else 2**20) // 2)


ROOM = _room()
"""Bytes of the cache that a block of a panel may fill; $SPARSIFY_PANEL_BYTES where it is given."""


def available() -> bool:
    """Whether the library was compiled."""
    return library.LIBRARY is not None


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return available() and values.is_cpu and values.dtype in NATIVE


def forward(
    input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window | None = None
) -> Tensor:
    """`input @ weight.T + bias`, or the convolution by a window."""
    batch, outs = input.shape[0], indices.crow.shape[0] - 1
    images = None if window is None else _geometry(input, indices, window)
    if images is None:
        output = input.new_empty_strided((batch, outs), (outs, 1))  # faster than `new_empty`, here and below
    else:
        if images.read:
            input = input[images.read].contiguous()
        output = input.new_empty((batch, outs, *images.out_size))
    if batch and outs:
        held: list[object] = []
        product = _product(False, indices, input, values, held, images)
        if bias is not None:
            product.bias = address(bias, outs * values.itemsize, held)
        product.result = output.data_ptr()
        _compute(product, images)
    return output


def backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: tuple[bool, bool, bool],
    window: Window | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    if not needs[0] and not needs[1]:
        return None, None, grad.sum((0, *range(2, grad.dim()))) if needs[2] else None
    images = None if window is None else _geometry(input, indices, window)
    whole, read = input.shape, None if images is None else images.read
    if read:
        input = input[read].contiguous()
    grad_input = input.new_empty_strided(input.shape, input.stride()) if needs[0] else None  # it is contiguous
    grad_values = values.new_empty_strided(values.shape, (1,)) if needs[1] else None
    grad_bias = grad.new_empty_strided(grad.shape[1:2], (1,)) if needs[2] else None
    if not len(grad):
        for sums in grad_values, grad_bias:
            if sums is not None:
                sums.zero_()
    else:
        held: list[object] = []
        product = _product(True, indices, input, values, held, images)
        pixels = 1 if images is None else images.pixels
        product.grad = address(grad, product.batch * product.out * pixels * values.itemsize, held)
        product.result = None if grad_input is None else grad_input.data_ptr()
        product.grad_values = None if grad_values is None else grad_values.data_ptr()
        product.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        _compute(product, images)
    if read and grad_input is not None:
        of_read, grad_input = grad_input, input.new_zeros(whole)
        grad_input[read] = of_read
    return grad_input, grad_values, grad_bias


def _geometry(input: Tensor, indices: Indices, window: Window) -> Geometry:
    """That of the input, whose places 64 bits can count, and whatever is made of them."""
    found = geometry(input, window, indices.ccol.shape[0] - 1)
    if found.places > PLACES:
        raise ValueError(f"input must be smaller with its padding, got {tuple(input.shape)} in {window}.")
    return found


def _product(
    is_backward: bool, indices: Indices, input: Tensor, values: Tensor, held: list[object], images: Geometry | None
) -> Product:
    """A product with all that both directions read; its results are still to be set."""
    product = _of(is_backward, indices, held)
    outs, nnz, real = product.out, product.nnz, values.itemsize
    if images is None:
        batch, ins = input.shape
        if ins != indices.ccol.shape[0] - 1:
            raise ValueError(f"input must be (batch, {indices.ccol.shape[0] - 1}), got {tuple(input.shape)}.")
        product.x = address(input, batch * ins * real, held)
        work = batch * (nnz + ins + outs)
    else:
        batch = input.shape[0]
        product.x = address(input, input.numel() * real, held)
        work = input.numel() + batch * images.pixels * (nnz + outs)
    product.batch = batch
    product.values = address(values, nnz * real, held)
    product.level, product.real_bytes, product.room, product.sharers = LEVEL, real, ROOM, SHARERS
    product.threads = library.threads((1 + is_backward) * work)
    return product


def _compute(product: Product, images: Geometry | None) -> None:
    if images is None:
        library.multiply(product)
    else:
        convolution = Convolution.from_buffer_copy(images.convolution)
        convolution.linear = product
        library.convolve(convolution)


def _of(is_backward: bool, indices: Indices, held: list[object]) -> Product:
    """A product that knows the indices which it reads: forward the CSR, backward the CSC."""
    crow, col, ccol, row, order = indices
    if type(indices) is Located and indices.addresses:
        at_crow, at_col, at_ccol, at_row, at_order = indices.addresses
        if is_backward:
            known = ccol.data_ptr() == at_ccol and row.data_ptr() == at_row and order.data_ptr() == at_order
        else:
            known = crow.data_ptr() == at_crow and col.data_ptr() == at_col
        if known:
            return Product.from_buffer_copy(indices.products[is_backward])
    outs, ins, nnz, size = crow.shape[0] - 1, ccol.shape[0] - 1, col.shape[0], crow.itemsize
    read = (ccol, ins + 1), (row, nnz), (order, nnz)
    starts, index, *rest = (
        address(tensor, length * size, held)
        for tensor, length in (read if is_backward else ((crow, outs + 1), (col, nnz)))
    )
    return Product(outs, ins, 0, nnz, 0, starts, index, *rest, index_bytes=size, is_backward=is_backward)
