"""The product, its gradients and their derivatives, as both autograd functions and operators use them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from sparsify._src.kernels import computing
from sparsify._src.kernels.computing import Gradients, Needs
from sparsify._src.kernels.recorder import record
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices


class Purpose(NamedTuple):
    """What a gradient of values is for.

    is_weight: whether the values are a layer's weight, not what came back to its gradient.
    leaf: the tensor whose `grad` it is added to, None where that is not known.
    """

    is_weight: bool = True
    leaf: Tensor | None = None


OF_WEIGHT = Purpose()


def backward(
    kernel: ModuleType,
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: Needs,
    purpose: Purpose = OF_WEIGHT,
    window: Window | None = None,
) -> Gradients:
    """Gradients of input, values and bias by this kernel, None where not needed; recorders keep the operands.

    Args:
        purpose: of the gradient of values.
    """
    grad, input = grad.contiguous(), input.contiguous()
    result = computing.backward(kernel, grad, input, values, indices, needs, window)
    if needs[1] and purpose.is_weight:
        record(grad, input, indices, purpose.leaf)
    return result


def differentiate(
    product: Callable[..., Tensor],
    gradients: Callable[..., Any],
    operands: tuple[Tensor, Tensor, Tensor],
    needs: Needs,
    cotangents: tuple[Tensor | None, ...],
) -> Gradients:
    """The gradients of `operands` where `gradients(*operands)` was differentiated: products of the same kinds.

    Args:
        product: (input, values, bias, is_weight) -> output.
        gradients: (grad, input, values, needs, is_weight) -> those of input, values and bias.
        operands: grad (batch, out_features), input (batch, in_features), values (nnz,); of a convolution (batch,
            out_channels, *out_size) and (batch, in_channels, *size).
        needs: whose gradient is needed.
        cotangents: what came back to the gradients of input, values and bias; None for nothing.
    """
    grad, input, values = operands
    to_input, to_values, to_bias = cotangents
    of_grad = of_input = of_values = None
    if needs[0]:
        if to_input is not None:
            of_grad = product(to_input, values, to_bias, True)
        elif to_bias is not None:
            of_grad = to_bias.view(-1, *[1] * (grad.dim() - 2)).expand_as(grad)
        if to_values is not None:
            other = product(input, to_values, None, False)
            of_grad = other if of_grad is None else of_grad + other
    if needs[1] and to_values is not None:
        of_input = gradients(grad, input, to_values, (True, False, False), False)[0]
    if needs[2] and to_input is not None:
        of_values = gradients(grad, to_input, values, (False, True, False), True)[1]
    return of_grad, of_input, of_values
