"""The autograd rule of the sparse product, of any order, on plain memory; `ops` has it for whatever else there is."""

import sys
from typing import Any

import torch
from torch import Tensor

from sparsify._src.kernels import by_dense_weight, computing, operators, ops, products
from sparsify._src.kernels.computing import Needs
from sparsify._src.kernels.dispatch import kernel_for
from sparsify._src.kernels.geometry import geometry
from sparsify._src.kernels.operands import is_direct, is_traced, is_transformed
from sparsify._src.kernels.products import OF_WEIGHT, Purpose
from sparsify._src.kernels.recorder import is_recording
from sparsify._src.kernels.window import Window, check_input
from sparsify._src.topology import Indices
from sparsify._src.torch_private import applier, is_batched, unwrapped, will_execute


def product(
    input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window | None = None
) -> Tensor:
    """`input @ weight.T + bias` for input (batch, in_features); the result is contiguous.

    Args:
        window: of a convolution; input is (batch, in_channels, *size) then.
    """
    compiles = torch.compiler.is_compiling()
    runs = not compiles and is_direct(input, values, bias)
    if window is not None and not is_traced():  # what torch.jit traces the operator checks, when it runs
        columns = indices.ccol.shape[0] - 1
        if runs:
            geometry(input, window, columns)  # the same check, which is remembered
        else:
            check_input(input.shape, window, columns)
    if bias is not None and bias.dtype != values.dtype:
        raise TypeError(f"bias must have the dtype of the values, {values.dtype}, got {bias.dtype}.")
    if input.dtype != values.dtype:
        raise TypeError(f"input must have the dtype of the values, {values.dtype}, got {input.dtype}.")
    result: Tensor
    if compiles:
        result = operators.product(input, values, bias, indices, window)
    elif runs:
        result = direct(input, values, bias, indices, window)
    elif is_transformed():
        result = ops.Transformed.apply(input, values, bias, window, *indices)  # type: ignore[no-untyped-call]
    elif _is_exported_to_onnx():
        result = by_dense_weight.product(input, values, bias, indices, window)
    else:
        result = operators.product(input, values, bias, indices, window)
    return result


def direct(
    input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices, window: Window | None = None
) -> Tensor:
    """The same for operands that are direct: as the operator, with half its overhead."""
    result: Tensor
    if torch.is_grad_enabled():
        bias = bias if bias is None else unwrapped(bias)
        result = _apply(unwrapped(input), unwrapped(values), bias, indices, True, window)
    else:
        result = computing.forward(kernel_for(values), input, values, bias, indices, window)
    return result


def _is_exported_to_onnx() -> bool:
    """Whether the exporter that traces with torch.jit, `dynamo=False`, is at work: it knows ATen's operators only."""
    onnx = sys.modules.get("torch.onnx")  # its import is slow, and whoever exports has done it
    return onnx is not None and is_traced() and bool(onnx.is_in_onnx_export())


class _Product(torch.autograd.Function):
    """The product. `is_weight` says whether values are a layer's weight, not what came back to its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        values: Tensor,
        bias: Tensor | None,
        indices: Indices,
        is_weight: bool,
        window: Window | None,
    ) -> Tensor:
        ctx.save_for_backward(input, values)
        ctx.kernel = kernel_for(values)
        ctx.indices = indices  # an evolution in between changes the values too, which autograd notices
        ctx.is_weight = is_weight
        ctx.window = window
        return computing.forward(ctx.kernel, input, values, bias, indices, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values = ctx.saved_tensors
        needs, again = ctx.needs_input_grad[:3], torch.is_grad_enabled()
        # The input was direct, when it came.
        if not is_direct(grad, values, None) or is_batched(grad) or torch.compiler.is_compiling():
            return *ops.gradients(grad, input, values, ctx.indices, needs, ctx.window), None, None, None
        purpose = OF_WEIGHT
        if needs[1] and (again or is_recording()):
            wanted, leaf = _asked_for(ctx.next_functions[1][0])
            needs, purpose = (needs[0], wanted, needs[2]), Purpose(ctx.is_weight, leaf)
        given = ctx.kernel, grad, input, values, ctx.indices, needs, purpose, ctx.window
        found = _Gradients.apply(*given) if again else products.backward(*given)  # type: ignore[no-untyped-call]
        return *found, None, None, None


_apply = applier(_Product)


class _Gradients(torch.autograd.Function):
    """The gradients of the product, where they are to be differentiated again."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Any,
        grad: Tensor,
        input: Tensor,
        values: Tensor,
        indices: Indices,
        needs: Needs,
        purpose: Purpose,
        window: Window | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, input, values)
        ctx.set_materialize_grads(False)
        ctx.kernel, ctx.indices, ctx.is_weight, ctx.window = kernel, indices, purpose.is_weight, window
        return products.backward(kernel, grad, input, values, indices, needs, purpose, window)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        given, needs, leaf = ctx.saved_tensors, ctx.needs_input_grad[1:4], None
        direct = all(
            is_direct(each, given[2], None) and not is_batched(each) for each in cotangents if each is not None
        )
        if not direct or torch.compiler.is_compiling():
            again = ops.differentiate(given, ctx.indices, needs, cotangents, ctx.window)
        else:
            if needs[2]:
                wanted, leaf = _asked_for(ctx.next_functions[2][0])
                needs = *needs[:2], wanted

            def product(input: Tensor, values: Tensor, bias: Tensor | None, is_weight: bool) -> Any:
                rest = ctx.indices, is_weight and ctx.is_weight, ctx.window
                return _Product.apply(input, values, bias, *rest)  # type: ignore[no-untyped-call]

            def gradients(grad: Tensor, input: Tensor, values: Tensor, needs: Any, is_weight: bool) -> Any:
                rest = ctx.indices, needs, Purpose(is_weight and ctx.is_weight, leaf), ctx.window
                return _Gradients.apply(ctx.kernel, grad, input, values, *rest)  # type: ignore[no-untyped-call]

            again = products.differentiate(product, gradients, given, needs, cotangents)
        return None, *again, *[None] * 4


def _asked_for(node: Any) -> tuple[bool, Tensor | None]:
    """Whether this backward pass is for the gradient of the values: torch.autograd.grad may be for the input alone.

    Args:
        node: of autograd's graph, to which that gradient goes.
    Returns:
        whether it is, and the tensor that the gradient is added to, None where that is not known.
    """
    try:
        wanted = will_execute(node)
    except RuntimeError:  # a leaf's gradient that is not accumulated, but given back
        wanted = True
    return wanted, getattr(node, "variable", None)
