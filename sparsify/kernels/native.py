"""Our own CPU kernels (native.c) for float32 and float64, as one autograd function."""

import ctypes
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TYPES = {torch.float32: "f32", torch.float64: "f64"}


def _load() -> ctypes.CDLL | None:
    """The compiled library; None where it was not built (no compiler when sparsify was installed)."""
    found = find_spec("sparsify.kernels._native")
    return None if found is None or found.origin is None else ctypes.CDLL(found.origin)


LIBRARY = _load()


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    return LIBRARY is not None and values.device.type == "cpu" and values.dtype in TYPES


def linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: dict[str, Tensor]) -> Tensor:
    """`input @ weight.T + bias` for input (batch, in_features); the result is contiguous."""
    if bias is not None and bias.dtype != values.dtype:
        raise TypeError(f"bias must have the dtype of the values, {values.dtype}, got {bias.dtype}.")
    names = "crow", "col", "row", "ccol", "csc_order"
    result: Tensor = _Linear.apply(input, values, bias, *(indices[n] for n in names))  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        values: Tensor,
        bias: Tensor | None,
        crow: Tensor,
        col: Tensor,
        row: Tensor,
        ccol: Tensor,
        csc_order: Tensor,
    ) -> Tensor:
        input, values = input.contiguous(), values.contiguous()
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(input, values, ccol, row, csc_order)
        output = input.new_empty(len(input), len(crow) - 1)
        _call("forward", output.shape[1], input, (crow, col, values, bias, input, output))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values, ccol, row, csc_order = ctx.saved_tensors
        needs_input, needs_values, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous()
        grad_input = torch.empty_like(input) if needs_input else None
        grad_values = torch.empty_like(values) if needs_values else None
        if needs_input or needs_values:
            tensors = (ccol, row, csc_order, values, input, grad, grad_input, grad_values)
            _call("backward", grad.shape[1], input, tensors)
        return grad_input, grad_values, grad.sum(0) if needs_bias else None, None, None, None, None, None


def _call(name: str, out_features: int, input: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    function = getattr(LIBRARY, f"sparsify_{name}_{TYPES[input.dtype]}")
    sizes = map(ctypes.c_int64, (out_features, input.shape[1], input.shape[0]))
    pointers = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
    if function(*sizes, torch.get_num_threads(), *pointers):
        raise MemoryError(f"no memory for the packed activations of a batch of {input.shape[0]}.")
