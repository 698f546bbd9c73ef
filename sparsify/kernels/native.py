"""Our own CPU kernels (native.c), for float32 and float64."""

import ctypes
from importlib.util import find_spec

import torch
from torch import Tensor

from sparsify.topology import Indices

SMALL = 50_000
"""Multiply-adds and activations below which one thread is as fast as several."""


def _load() -> ctypes.CDLL | None:
    """The compiled library; None where it was not built (no compiler when sparsify was installed)."""
    found = find_spec("sparsify.kernels._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    int64 = ctypes.c_int64
    library.sparsify_linear.argtypes = [*[ctypes.c_int] * 4, *[int64] * 3, ctypes.c_int, *[ctypes.c_void_p] * 10]
    return library


LIBRARY = _load()
LEVEL: int = LIBRARY.sparsify_level() if LIBRARY else 0
"""Of the instruction sets: 0 the baseline, 1 AVX2 with FMA, 2 AVX-512."""


def available() -> bool:
    """Whether the library was compiled."""
    return LIBRARY is not None


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return LIBRARY is not None and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`."""
    output = input.new_empty(len(input), len(indices.crow) - 1)
    if output.numel():
        _call(False, output.shape[1], input, (indices.crow, indices.col, None, values, bias, input, None, output, None, None))
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
        results = grad_input, grad_values, grad_bias
        _call(True, grad.shape[1], input, (*index, values, None, input, grad, *results))
    return grad_input, grad_values, grad_bias


def _call(backward: bool, out_features: int, input: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    assert LIBRARY is not None
    batch, in_features = input.shape
    work = batch * (len(tensors[1]) + in_features + out_features)  # type: ignore[arg-type]
    failed = LIBRARY.sparsify_linear(
        LEVEL,
        input.element_size(),
        tensors[0].element_size(),  # type: ignore[union-attr]
        backward,
        out_features,
        in_features,
        batch,
        torch.get_num_threads() if work > SMALL else 1,
        *[None if tensor is None else tensor.data_ptr() for tensor in tensors],
    )
    if failed:
        raise MemoryError(f"no memory for the packed activations of a batch of {batch}.")
