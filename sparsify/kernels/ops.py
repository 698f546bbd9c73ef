"""The autograd rule of the sparse product: as a plain function, and as an operator that torch.compile can trace."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from sparsify.distributed import leave_indices
from sparsify.kernels.choice import choose
from sparsify.kernels.recorder import record
from sparsify.topology import Indices


def linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias` for input (batch, in_features); the result is contiguous."""
    if bias is not None and bias.dtype != values.dtype:
        raise TypeError(f"bias must have the dtype of the values, {values.dtype}, got {bias.dtype}.")
    if torch.compiler.is_compiling():
        result: Tensor = _linear(input, values, bias, *indices)
    elif torch.is_grad_enabled():  # as the operator, with half its overhead
        result = _Linear.apply(input, values, bias, indices)  # type: ignore[no-untyped-call]
    else:
        result = _forward(input, values, bias, indices)
    return result


def _forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)  # torch's own, in compiled graphs too
    if ddp is not None:
        leave_indices(ddp)
    bias = None if bias is None else bias.contiguous()
    result: Tensor = choose(values).forward(input.contiguous(), values.contiguous(), bias, indices)
    return result


def _backward(
    kernel: ModuleType, grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    grad, input = grad.contiguous(), input.contiguous()
    if needs[1]:
        record(grad, input, indices)
    result: tuple[Tensor | None, ...] = kernel.backward(grad, input, values.contiguous(), indices, needs)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
        ctx.save_for_backward(input, values)
        ctx.kernel = choose(values)
        ctx.indices = indices  # an evolution in between changes the values too, which autograd notices
        return _forward(input, values, bias, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, values = ctx.saved_tensors
        return *_backward(ctx.kernel, grad, input, values, ctx.indices, ctx.needs_input_grad[:3]), None


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
    return _forward(input, values, bias, Indices(crow, col, ccol, csc_row, csc_order))


@_linear.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, *indices: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], crow.shape[0] - 1)


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
    indices = Indices(crow, col, ccol, csc_row, csc_order)
    found = _backward(choose(values), grad, input, values, indices, tuple(needs))
    of_input, of_values, of_bias = (grad.new_empty(0) if gradient is None else gradient for gradient in found)
    return of_input, of_values, of_bias


@_linear_backward.register_fake
def _(grad: Tensor, input: Tensor, values: Tensor, *indices_and_needs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, needs = indices_and_needs
    full = input.shape, values.shape, grad.shape[1:]
    shapes = [shape if need else (0,) for shape, need in zip(full, needs, strict=True)]
    return grad.new_empty(shapes[0]), grad.new_empty(shapes[1]), grad.new_empty(shapes[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, values, _, *indices = inputs
    ctx.save_for_backward(input, values, *indices)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    found = _linear_backward(grad, *ctx.saved_tensors, needs)
    gradients = (gradient if need else None for gradient, need in zip(found, needs, strict=True))
    return *gradients, None, None, None, None, None


_linear.register_autograd(_differentiate, setup_context=_keep)
