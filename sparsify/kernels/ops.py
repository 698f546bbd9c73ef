"""The autograd rule of the sparse product: as a plain function, and as an operator that PyTorch's tools can trace."""

import sys
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparsify.distributed import leave_indices
from sparsify.kernels import native, operands
from sparsify.kernels.choice import choose
from sparsify.kernels.operands import is_direct, is_traced, is_transformed
from sparsify.kernels.recorder import record
from sparsify.swap import LOCK
from sparsify.topology import Indices


def linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias` for input (batch, in_features); the result is contiguous."""
    if bias is not None and bias.dtype != values.dtype:
        raise TypeError(f"bias must have the dtype of the values, {values.dtype}, got {bias.dtype}.")
    if input.dtype != values.dtype:
        raise TypeError(f"input must have the dtype of the values, {values.dtype}, got {input.dtype}.")
    result: Tensor
    if torch.compiler.is_compiling():
        result = _linear(input, values, bias, *indices)
    elif is_direct(input, values, bias):
        if torch.is_grad_enabled():  # as the operator, with half its overhead
            result = _Linear.apply(input, values, bias, indices)  # type: ignore[no-untyped-call]
        else:
            result = _forward(choose(values), input, values, bias, indices)
    elif is_transformed():
        result = _Transformed.apply(input, values, bias, *indices)  # type: ignore[no-untyped-call]
    elif _is_exported_to_onnx():
        result = _by_dense_weight(input, values, bias, *indices)
    else:
        result = _linear(input, values, bias, *indices)
    return result


def _is_exported_to_onnx() -> bool:
    """Whether the exporter that traces with torch.jit, `dynamo=False`, is at work: it knows ATen's operators only."""
    onnx = sys.modules.get("torch.onnx")  # its import is slow, and whoever exports has done it
    return onnx is not None and is_traced() and bool(onnx.is_in_onnx_export())


def _forward(kernel: ModuleType, input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)  # torch's own, in compiled graphs too
    if ddp is not None:
        leave_indices(ddp)
    if bias is not None and bias.numel() != indices.crow.numel() - 1:
        raise ValueError(f"bias must be ({indices.crow.numel() - 1},), got {tuple(bias.shape)}.")
    input, values, bias = input.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    if kernel is native:  # it sees to it by itself that no thread changes what it reads
        return native.forward(input, values, bias, indices)
    with LOCK:
        operands.check_memory(*indices, input, values, bias)
        result: Tensor = kernel.forward(input, values, bias, indices)
    return result


def _backward(
    kernel: ModuleType, grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    grad, input = grad.contiguous(), input.contiguous()
    result: tuple[Tensor | None, ...]
    if kernel is native:
        result = native.backward(grad, input, values.contiguous(), indices, needs)  # type: ignore[arg-type]
    else:
        with LOCK:
            operands.check_memory(*indices, input, values, grad)
            result = kernel.backward(grad, input, values.contiguous(), indices, needs)
    if result[1] is not None:
        record(grad, input, result[1], indices)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
        ctx.save_for_backward(input, values)
        ctx.kernel = choose(values)
        ctx.indices = indices  # an evolution in between changes the values too, which autograd notices
        return _forward(ctx.kernel, input, values, bias, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        again = torch.is_grad_enabled() or torch.compiler.is_compiling()  # to be differentiated again, or recorded
        if not again and is_direct(grad, values, None):  # input was, when it came
            return *_backward(ctx.kernel, grad, input, values, ctx.indices, needs), None
        return *_gradients(_linear_backward, grad, input, values, ctx.indices, needs), None


def _check(indices: Indices, input: Tensor, values: Tensor, **rest: Tensor | None) -> None:
    """Check what an operator is given: a layer knows its own indices, a graph that came out of a file does not."""
    operands.check(indices, input, values, **rest)
    if values.is_cpu and choose(values) is not native:  # which looks for itself; and a look at CUDA's would wait for it
        operands.check_range(indices)


@torch.library.custom_op("sparsify::linear", mutates_args=())
def _linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    csc_row: Tensor,
    csc_order: Tensor,
) -> Tensor:
    input, values, bias, *index = operands.plain((input, values, bias, crow, col, ccol, csc_row, csc_order))
    indices = Indices(*index)
    _check(indices, input, values, bias=bias)
    return _forward(choose(values), input, values, bias, indices)


@_linear.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    indices = Indices(*index)
    operands.check_width(input, indices)
    return input.new_empty(input.shape[0], indices.crow.shape[0] - 1)


@register_decomposition(torch.ops.sparsify.linear.default)
def _by_dense_weight(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    """The product in ATen's operators, for exporters that know no other, such as torch.onnx's."""
    indices = Indices(*index)
    row = indices.csc_row.scatter(0, indices.csc_order.long(), indices.csc_row)
    weight = values.new_zeros(indices.crow.shape[0] - 1, indices.ccol.shape[0] - 1)
    return F.linear(input, weight.index_put((row.long(), indices.col.long()), values), bias)


@torch.library.custom_op("sparsify::linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    csc_row: Tensor,
    csc_order: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad, input, values, *index = operands.plain((grad, input, values, crow, col, ccol, csc_row, csc_order))
    indices = Indices(*index)
    _check(indices, input, values, grad=grad)
    found = _backward(choose(values), grad, input, values, indices, tuple(needs))
    of_input, of_values, of_bias = (grad.new_empty(0) if gradient is None else gradient for gradient in found)
    return of_input, of_values, of_bias


@_linear_backward.register_fake
def _(grad: Tensor, input: Tensor, values: Tensor, *indices_and_needs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, needs = indices_and_needs
    full = input.shape, values.shape, grad.shape[1:]
    shapes = [shape if need else (0,) for shape, need in zip(full, needs, strict=True)]
    return grad.new_empty(shapes[0]), grad.new_empty(shapes[1]), grad.new_empty(shapes[2])


def _gradients(operator: Any, grad: Tensor, input: Tensor, values: Tensor, indices: Any, needs: Any) -> Any:
    """Gradients of input, values and bias by `operator`; None where not needed."""
    found = operator(grad, input, values, *indices, list(needs))
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, _, *indices = inputs
    ctx.save_for_backward(input, values, *indices)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, values, *indices = ctx.saved_tensors
    return *_gradients(_operators()[1], grad, input, values, indices, ctx.needs_input_grad[:3]), *[None] * 5


_linear.register_autograd(_differentiate, setup_context=_keep)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, needs = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.needs = needs


def _differentiate_backward(
    ctx: Any, of_input: Tensor, of_values: Tensor, of_bias: Tensor
) -> tuple[Tensor | None, ...]:
    """The derivative of the gradients: each part of it is a product of the same kinds.

    Args:
        of_input, of_values, of_bias: what comes back to the gradients of input, values and bias.
    """
    grad, input, values, *indices = ctx.saved_tensors
    product, gradients = _operators()
    terms = []
    again_input = again_values = None
    if ctx.needs[0]:
        terms.append(product(of_input, values, None, *indices))
        if ctx.needs_input_grad[2]:
            again_values = gradients(grad, of_input, values, *indices, [False, True, False])[1]
    if ctx.needs[1]:
        terms.append(product(input, of_values, None, *indices))
        if ctx.needs_input_grad[1]:
            again_input = gradients(grad, input, of_values, *indices, [True, False, False])[0]
    if ctx.needs[2]:
        terms.append(of_bias.expand_as(grad))
    return torch.stack(terms).sum(0), again_input, again_values, *[None] * 6


_linear_backward.register_autograd(_differentiate_backward, setup_context=_keep_backward)


def _operators() -> tuple[Any, Any]:
    """The product and its gradients, differentiable in the way that is asked for now."""
    return (_Transformed.apply, _TransformedBackward.apply) if is_transformed() else (_linear, _linear_backward)


def _refuse_vmap(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "input must have its batch in dimensions of its own, got one of torch.vmap. Call the layer on all samples at "
        "once; gradients of each sample are not supported."
    )


class _Transformed(torch.autograd.Function):
    """The operator again, as torch.func and forward-mode differentiation need it: they cannot look into operators."""

    @staticmethod
    def forward(*given: Any) -> Tensor:
        result: Tensor = _linear(*given)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, values, _, *indices = inputs
        ctx.save_for_backward(input, values, *indices)
        ctx.save_for_forward(input, values, *indices)

    backward = staticmethod(_differentiate)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(ctx: Any, input: Tensor | None, values: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        kept, weights, *indices = ctx.saved_tensors
        terms = [bias.expand(len(kept), -1)] if bias is not None else []
        if input is not None:
            terms.append(_Transformed.apply(input, weights, None, *indices))  # type: ignore[no-untyped-call]
        if values is not None:
            terms.append(_Transformed.apply(kept, values, None, *indices))  # type: ignore[no-untyped-call]
        return torch.stack(terms).sum(0)


class _TransformedBackward(torch.autograd.Function):
    """The same for gradients."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = _linear_backward(*given)
        return result

    setup_context = staticmethod(_keep_backward)
    backward = staticmethod(_differentiate_backward)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(
        ctx: Any, grad: Tensor | None, input: Tensor | None, values: Tensor | None, *rest: None
    ) -> tuple[Tensor, ...]:
        kept_grad, kept_input, kept_values, *indices = ctx.saved_tensors
        first, second, _ = ctx.needs
        gradients: Any = _TransformedBackward.apply
        found = []
        if grad is not None:
            found.append(gradients(grad, kept_input, kept_values, *indices, ctx.needs))
        if input is not None and second:
            found.append((None, gradients(kept_grad, input, kept_values, *indices, [False, True, False])[1], None))
        if values is not None and first:
            found.append((gradients(kept_grad, kept_input, values, *indices, [True, False, False])[0], None, None))
        full = kept_input.shape, kept_values.shape, kept_grad.shape[1:]
        zeros = [kept_grad.new_zeros(shape if need else (0,)) for shape, need in zip(full, ctx.needs, strict=True)]
        return tuple(
            sum((part for part in parts if part is not None), start=zero)
            for zero, parts in zip(zeros, zip(*found, strict=True), strict=True)
        )
