"""The sparse product and its gradients as operators that PyTorch's tools can trace."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify._src.kernels import by_dense_weight, computing, native, operands, products
from sparsify._src.kernels.dispatch import kernel_for
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices
from sparsify._src.torch_private import keep_whole, register_decomposition


def _check(indices: Indices, input: Tensor, values: Tensor, window: Window | None, **rest: Tensor | None) -> None:
    """Check what an operator is given: a layer knows its own indices, a graph that came out of a file does not."""
    operands.check(indices, input, values, window, **rest)
    # Native kernels look themselves; and to look at CUDA's indices would be to wait for them.
    if values.is_cpu and kernel_for(values) is not native:
        operands.check_range(indices)


def _forward(
    input: Tensor, values: Tensor, bias: Tensor | None, index: Sequence[Tensor], window: Window | None
) -> Tensor:
    operands.refuse_tangents(input, values, bias)
    input, values, bias, *index = operands.plain((input, values, bias, *index))
    indices = Indices(*index)
    _check(indices, input, values, window, bias=bias)
    return computing.forward(kernel_for(values), input, values, bias, indices, window)


_INDICES = "Tensor crow, Tensor col, Tensor ccol, Tensor csc_row, Tensor csc_order"
_FORWARD = f"(Tensor input, Tensor values, Tensor? bias, {_INDICES}{{}}) -> Tensor"
"""Schemas are written out: what torch reads of annotations differs from release to release."""


@torch.library.custom_op("sparsify::linear", mutates_args=(), schema=_FORWARD.format(""))
def linear(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    """`input @ weight.T + bias`."""
    return _forward(input, values, bias, index, None)


@torch.library.custom_op("sparsify::convolution", mutates_args=(), schema=_FORWARD.format(", int[] window"))
def convolution(input: Tensor, values: Tensor, bias: Tensor | None, *index_and_window: Any) -> Tensor:
    """The convolution; the window is the numbers of a `Window`."""
    *index, numbers = index_and_window
    return _forward(input, values, bias, index, Window.of(numbers))


def product(
    input: Tensor, values: Tensor, bias: Tensor | None, indices: Sequence[Tensor], window: Window | None
) -> Any:
    """The operator: `linear`, or where there is a window, `convolution`."""
    if window is None:
        return linear(input, values, bias, *indices)
    return convolution(input, values, bias, *indices, window.numbers)


@linear.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    keep_whole(torch.ops.sparsify.linear.default)
    indices = Indices(*index)
    operands.check_width(input, indices)
    return input.new_empty(input.shape[0], indices.crow.shape[0] - 1)


@convolution.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, *index_and_window: Any) -> Tensor:
    keep_whole(torch.ops.sparsify.convolution.default)
    *index, numbers = index_and_window
    indices, window = Indices(*index), Window.of(numbers)
    operands.check_width(input, indices, window)
    return input.new_empty(input.shape[0], indices.crow.shape[0] - 1, *window.out_size(input.shape[2:]))


@register_decomposition(torch.ops.sparsify.linear.default)
def _linear_by_dense_weight(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    return by_dense_weight.product(input, values, bias, Indices(*index), None)


@register_decomposition(torch.ops.sparsify.convolution.default)
def _convolution_by_dense_weight(input: Tensor, values: Tensor, bias: Tensor | None, *index_and_window: Any) -> Tensor:
    *index, numbers = index_and_window
    return by_dense_weight.product(input, values, bias, Indices(*index), Window.of(numbers))


def _backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    needs: Sequence[bool],
    window: Window | None,
) -> tuple[Tensor, Tensor, Tensor]:
    operands.refuse_tangents(grad, input, values)
    grad, input, values, *index = operands.plain((grad, input, values, *index))
    indices = Indices(*index)
    _check(indices, input, values, window, grad=grad)
    first, second, third = needs
    given = kernel_for(values), grad, input, values, indices, (first, second, third)
    found = products.backward(*given, window=window)
    of_input, of_values, of_bias = (grad.new_empty(0) if gradient is None else gradient for gradient in found)
    return of_input, of_values, of_bias


_BACKWARD = f"(Tensor grad, Tensor input, Tensor values, {_INDICES}, bool[] needs{{}}) -> (Tensor, Tensor, Tensor)"


@torch.library.custom_op("sparsify::linear_backward", mutates_args=(), schema=_BACKWARD.format(""))
def linear_backward(grad: Tensor, input: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, values and bias, empty where not needed."""
    *index, needs = rest
    return _backward(grad, input, values, index, needs, None)


@torch.library.custom_op("sparsify::convolution_backward", mutates_args=(), schema=_BACKWARD.format(", int[] window"))
def convolution_backward(grad: Tensor, input: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a convolution."""
    *index, needs, numbers = rest
    return _backward(grad, input, values, index, needs, Window.of(numbers))


@linear_backward.register_fake
def _(grad: Tensor, input: Tensor, values: Tensor, *indices_and_needs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(grad, input, values, indices_and_needs[-1])


@convolution_backward.register_fake
def _(grad: Tensor, input: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(grad, input, values, rest[-2])


def _empty_gradients(
    grad: Tensor, input: Tensor, values: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    full = input.shape, values.shape, grad.shape[1:2]
    shapes = [shape if need else (0,) for shape, need in zip(full, needs, strict=True)]
    return grad.new_empty(shapes[0]), grad.new_empty(shapes[1]), grad.new_empty(shapes[2])


def gradients(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Iterable[Tensor],
    needs: list[bool],
    window: Window | None,
) -> Any:
    """The operator of gradients: of input, values and bias, empty where not needed."""
    if window is None:
        return linear_backward(grad, input, values, *indices, needs)
    return convolution_backward(grad, input, values, *indices, needs, window.numbers)
