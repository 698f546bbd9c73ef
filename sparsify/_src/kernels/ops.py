"""The sparse product and its gradients as operators that PyTorch's tools can trace, and as torch.func needs them."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsify._src.kernels import native, operands, products
from sparsify._src.kernels.dispatch import kernel_for
from sparsify._src.kernels.operands import is_transformed
from sparsify._src.topology import Indices
from sparsify._src.torch_private import keep_whole, register_decomposition


def _check(indices: Indices, input: Tensor, values: Tensor, **rest: Tensor | None) -> None:
    """Check what an operator is given: a layer knows its own indices, a graph that came out of a file does not."""
    operands.check(indices, input, values, **rest)
    # Native kernels look themselves; and to look at CUDA's indices would be to wait for them.
    if values.is_cpu and kernel_for(values) is not native:
        operands.check_range(indices)


@torch.library.custom_op("sparsify::linear", mutates_args=())
def linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    ccol: Tensor,
    csc_row: Tensor,
    csc_order: Tensor,
) -> Tensor:
    """`input @ weight.T + bias`."""
    operands.refuse_tangents(input, values, bias)
    input, values, bias, *index = operands.plain((input, values, bias, crow, col, ccol, csc_row, csc_order))
    indices = Indices(*index)
    _check(indices, input, values, bias=bias)
    return products.forward(kernel_for(values), input, values, bias, indices)


@linear.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    keep_whole(torch.ops.sparsify.linear.default)
    indices = Indices(*index)
    operands.check_width(input, indices)
    return input.new_empty(input.shape[0], indices.crow.shape[0] - 1)


@register_decomposition(torch.ops.sparsify.linear.default)
def by_dense_weight(input: Tensor, values: Tensor, bias: Tensor | None, *index: Tensor) -> Tensor:
    """The product in ATen's operators, for exporters that know no other, such as torch.onnx's."""
    indices = Indices(*index)
    row = indices.csc_row.scatter(0, indices.csc_order.long(), indices.csc_row)
    weight = values.new_zeros(indices.crow.shape[0] - 1, indices.ccol.shape[0] - 1)
    return F.linear(input, weight.index_put((row.long(), indices.col.long()), values), bias)


@torch.library.custom_op(
    "sparsify::linear_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor input, Tensor values, Tensor crow, Tensor col, Tensor ccol, Tensor csc_row, "
    "Tensor csc_order, bool[] needs) -> (Tensor, Tensor, Tensor)",  # torch 2.5 cannot read list[bool]
)
def linear_backward(
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
    """Gradients of input, values and bias, empty where not needed."""
    operands.refuse_tangents(grad, input, values)
    grad, input, values, *index = operands.plain((grad, input, values, crow, col, ccol, csc_row, csc_order))
    indices = Indices(*index)
    _check(indices, input, values, grad=grad)
    first, second, third = needs
    found = products.backward(kernel_for(values), grad, input, values, indices, (first, second, third))
    of_input, of_values, of_bias = (grad.new_empty(0) if gradient is None else gradient for gradient in found)
    return of_input, of_values, of_bias


@linear_backward.register_fake
def _(grad: Tensor, input: Tensor, values: Tensor, *indices_and_needs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, needs = indices_and_needs
    full = input.shape, values.shape, grad.shape[1:]
    shapes = [shape if need else (0,) for shape, need in zip(full, needs, strict=True)]
    return grad.new_empty(shapes[0]), grad.new_empty(shapes[1]), grad.new_empty(shapes[2])


def gradients(grad: Tensor, input: Tensor, values: Tensor, indices: Iterable[Tensor], needs: Iterable[bool]) -> Any:
    """Gradients of input, values and bias, differentiable in the way that is asked for now; None where not needed."""
    needs = list(needs)
    operator: Any = _TransformedGradients.apply if is_transformed() else linear_backward
    found = operator(grad, input, values, *indices, needs)
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def differentiate(
    given: tuple[Tensor, Tensor, Tensor],
    indices: Sequence[Tensor],
    needs: products.Needs,
    cotangents: tuple[Tensor | None, ...],
) -> products.Gradients:
    """The gradients of `gradients`: see `products.differentiate`."""
    operator: Any = Transformed.apply if is_transformed() else linear
    return products.differentiate(
        lambda input, values, bias, _: operator(input, values, bias, *indices),
        lambda grad, input, values, needs, _: gradients(grad, input, values, indices, needs),
        given,
        needs,
        cotangents,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, _, *indices = inputs
    ctx.save_for_backward(input, values, *indices)
    ctx.save_for_forward(input, values, *indices)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, values, *indices = ctx.saved_tensors
    return *gradients(grad, input, values, indices, ctx.needs_input_grad[:3]), *[None] * 5


linear.register_autograd(_differentiate, setup_context=_keep)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *tensors, needs = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.needs = needs


def _differentiate_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, input, values, *indices = ctx.saved_tensors
    needed = tuple(cotangent if need else None for cotangent, need in zip(cotangents, ctx.needs, strict=True))
    return *differentiate((grad, input, values), indices, ctx.needs_input_grad[:3], needed), *[None] * 6


linear_backward.register_autograd(_differentiate_backward, setup_context=_keep_backward)


def _refuse_vmap(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "input must have its batch in dimensions of its own, got one of torch.vmap. Call the layer on all samples at "
        "once; gradients of each sample are not supported."
    )


class Transformed(torch.autograd.Function):
    """The operator again, as torch.func and forward-mode differentiation need it: they cannot look into operators."""

    @staticmethod
    def forward(*given: Any) -> Tensor:
        """As the operator's."""
        result: Tensor = linear(*given)
        return result

    setup_context = staticmethod(_keep)
    backward = staticmethod(_differentiate)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(ctx: Any, input: Tensor | None, values: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        """The tangent of the output."""
        kept, weights, *indices = ctx.saved_tensors
        terms = [bias.expand(len(kept), -1)] if bias is not None else []
        if input is not None:
            terms.append(Transformed.apply(input, weights, None, *indices))  # type: ignore[no-untyped-call]
        if values is not None:
            terms.append(Transformed.apply(kept, values, None, *indices))  # type: ignore[no-untyped-call]
        return torch.stack(terms).sum(0)


class _TransformedGradients(torch.autograd.Function):
    """The same for gradients."""

    @staticmethod
    def forward(*given: Any) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = linear_backward(*given)
        return result

    setup_context = staticmethod(_keep_backward)
    backward = staticmethod(_differentiate_backward)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(ctx: Any, grad: Tensor | None, input: Tensor | None, values: Tensor | None, *_: None) -> tuple[Tensor, ...]:
        kept_grad, kept_input, kept_values, *indices = ctx.saved_tensors
        first, second, _third = ctx.needs
        full = kept_input.shape, kept_values.shape, kept_grad.shape[1:]
        tangents = [kept_grad.new_zeros(shape if need else (0,)) for shape, need in zip(full, ctx.needs, strict=True)]

        def add(*found: Tensor | None) -> None:
            for number, tangent in enumerate(found):
                if tangent is not None:
                    tangents[number] = tangents[number] + tangent

        if grad is not None:
            add(*gradients(grad, kept_input, kept_values, indices, ctx.needs))
        if input is not None and second:
            add(*gradients(kept_grad, input, kept_values, indices, (False, True, False)))
        if values is not None and first:
            add(*gradients(kept_grad, kept_input, values, indices, (True, False, False)))
        return tuple(tangents)
