"""The product, its gradients and their derivatives, as both autograd functions and operators use them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sparsify._src.distributed import leave_indices
from sparsify._src.kernels import native, operands
from sparsify._src.kernels.recorder import record
from sparsify._src.swap import LOCK
from sparsify._src.topology import Indices

Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Purpose(NamedTuple):
    """What a gradient of values is for.

    is_weight: whether the values are a layer's weight, not what came back to its gradient.
    leaf: the tensor whose `grad` it is added to, None where that is not known.
    """

    is_weight: bool = True
    leaf: Tensor | None = None


OF_WEIGHT = Purpose()


def forward(kernel: ModuleType, input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias` by this kernel."""
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


def backward(
    kernel: ModuleType,
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: Needs,
    purpose: Purpose = OF_WEIGHT,
) -> Gradients:
    """Gradients of input, values and bias by this kernel, None where not needed.

    Args:
        purpose: of the gradient of values.
    """
    grad, input = grad.contiguous(), input.contiguous()
    result: Gradients
    if kernel is native:
        result = native.backward(grad, input, values.contiguous(), indices, needs)
    else:
        with LOCK:
            operands.check_memory(*indices, input, values, grad)
            result = kernel.backward(grad, input, values.contiguous(), indices, needs)
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
        operands: grad (batch, out_features), input (batch, in_features), values (nnz,).
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
            of_grad = to_bias.expand_as(grad)
        if to_values is not None:
            other = product(input, to_values, None, False)
            of_grad = other if of_grad is None else of_grad + other
    if needs[1] and to_values is not None:
        of_input = gradients(grad, input, to_values, (True, False, False), False)[0]
    if needs[2] and to_input is not None:
        of_values = gradients(grad, to_input, values, (False, True, False), True)[1]
    return of_grad, of_input, of_values
