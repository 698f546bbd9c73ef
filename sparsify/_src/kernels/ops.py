"""How the operators are differentiated, and the product as torch.func needs it."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from sparsify._src.kernels import operators, products
from sparsify._src.kernels.computing import Gradients, Needs
from sparsify._src.kernels.operands import is_transformed
from sparsify._src.kernels.window import Window


def gradients(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Iterable[Tensor],
    needs: Iterable[bool],
    window: Window | None,
) -> Any:
    """Gradients of input, values and bias, differentiable in the way that is asked for now; None where not needed."""
    needs = list(needs)
    if is_transformed():
        found = _TransformedGradients.apply(grad, input, values, window, *indices, needs)  # type: ignore[no-untyped-call]
    else:
        found = operators.gradients(grad, input, values, indices, needs, window)
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def differentiate(
    given: tuple[Tensor, Tensor, Tensor],
    indices: Sequence[Tensor],
    needs: Needs,
    cotangents: tuple[Tensor | None, ...],
    window: Window | None,
) -> Gradients:
    """The gradients of `gradients`: see `products.differentiate`."""

    def again(input: Tensor, values: Tensor, bias: Tensor | None, _: bool) -> Any:
        if is_transformed():
            return Transformed.apply(input, values, bias, window, *indices)  # type: ignore[no-untyped-call]
        return operators.product(input, values, bias, indices, window)

    return products.differentiate(
        again,
        lambda grad, input, values, needs, _: gradients(grad, input, values, indices, needs, window),
        given,
        needs,
        cotangents,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, _, window, *indices = inputs
    ctx.save_for_backward(input, values, *indices)
    ctx.save_for_forward(input, values, *indices)
    ctx.window = window


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, values, *indices = ctx.saved_tensors
    return *gradients(grad, input, values, indices, ctx.needs_input_grad[:3], ctx.window), *[None] * 6


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    grad, input, values, window, *indices, needs = inputs
    tensors = grad, input, values, *indices
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.needs, ctx.window = needs, window


def _differentiate_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, input, values, *indices = ctx.saved_tensors
    needed = tuple(cotangent if need else None for cotangent, need in zip(cotangents, ctx.needs, strict=True))
    needs = ctx.needs_input_grad[:3]
    return *differentiate((grad, input, values), indices, needs, needed, ctx.window), *[None] * 7


# The operators have the window last, and not at all where there is none.
operators.linear.register_autograd(
    lambda ctx, grad: _differentiate(ctx, grad)[:-1],
    setup_context=lambda ctx, inputs, output: _keep(ctx, (*inputs[:3], None, *inputs[3:]), output),
)
operators.convolution.register_autograd(
    _differentiate,
    setup_context=lambda ctx, inputs, output: _keep(ctx, (*inputs[:3], Window.of(inputs[-1]), *inputs[3:-1]), output),
)
operators.linear_backward.register_autograd(
    lambda ctx, *grads: _differentiate_backward(ctx, *grads)[:-1],
    setup_context=lambda ctx, inputs, output: _keep_backward(ctx, (*inputs[:3], None, *inputs[3:]), output),
)
operators.convolution_backward.register_autograd(
    _differentiate_backward,
    setup_context=lambda ctx, inputs, output: _keep_backward(
        ctx, (*inputs[:3], Window.of(inputs[-1]), *inputs[3:-1]), output
    ),
)


def _refuse_vmap(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "input must have its batch in dimensions of its own, got one of torch.vmap. Call the layer on all samples at "
        "once; gradients of each sample are not supported."
    )


class Transformed(torch.autograd.Function):
    """The operator again, as torch.func and forward-mode differentiation need it: they cannot look into operators."""

    @staticmethod
    def forward(input: Tensor, values: Tensor, bias: Tensor | None, window: Window | None, *indices: Tensor) -> Tensor:
        """As the operator's."""
        result: Tensor = operators.product(input, values, bias, indices, window)
        return result

    setup_context = staticmethod(_keep)
    backward = staticmethod(_differentiate)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(ctx: Any, input: Tensor | None, values: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        """The tangent of the output."""
        kept, weights, *indices = ctx.saved_tensors
        rest = None, ctx.window, *indices
        terms = []
        if input is not None:
            terms.append(Transformed.apply(input, weights, *rest))  # type: ignore[no-untyped-call]
        if values is not None:
            terms.append(Transformed.apply(kept, values, *rest))  # type: ignore[no-untyped-call]
        if bias is not None:
            size = () if ctx.window is None else ctx.window.out_size(kept.shape[2:])
            terms.append(bias.view(-1, *[1] * len(size)).expand(len(kept), -1, *size))
        return torch.stack(terms).sum(0)


class _TransformedGradients(torch.autograd.Function):
    """The same for gradients."""

    @staticmethod
    def forward(
        grad: Tensor, input: Tensor, values: Tensor, window: Window | None, *indices_and_needs: Any
    ) -> tuple[Tensor, ...]:
        *indices, needs = indices_and_needs
        result: tuple[Tensor, ...] = operators.gradients(grad, input, values, indices, needs, window)
        return result

    setup_context = staticmethod(_keep_backward)
    backward = staticmethod(_differentiate_backward)
    vmap = staticmethod(_refuse_vmap)

    @staticmethod
    def jvp(ctx: Any, grad: Tensor | None, input: Tensor | None, values: Tensor | None, *_: None) -> tuple[Tensor, ...]:
        kept_grad, kept_input, kept_values, *indices = ctx.saved_tensors
        first, second, _third = ctx.needs
        full = kept_input.shape, kept_values.shape, kept_grad.shape[1:2]
        tangents = [kept_grad.new_zeros(shape if need else (0,)) for shape, need in zip(full, ctx.needs, strict=True)]

        def add(*found: Tensor | None) -> None:
            for number, tangent in enumerate(found):
                if tangent is not None:
                    tangents[number] = tangents[number] + tangent

        if grad is not None:
            add(*gradients(grad, kept_input, kept_values, indices, ctx.needs, ctx.window))
        if input is not None and second:
            add(*gradients(kept_grad, input, kept_values, indices, (False, True, False), ctx.window))
        if values is not None and first:
            add(*gradients(kept_grad, kept_input, values, indices, (True, False, False), ctx.window))
        return tuple(tangents)
