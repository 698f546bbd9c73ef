"""One product, or its gradients, by a kernel: what no kernel needs to think of."""

from types import ModuleType

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sparsify._src.distributed import leave_indices
from sparsify._src.kernels import by_dense_weight, native, operands
from sparsify._src.kernels.dispatch import kernel_for
from sparsify._src.kernels.window import Window
from sparsify._src.swap import LOCK
from sparsify._src.topology import Indices

Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    kernel: ModuleType,
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    indices: Indices,
    window: Window | None = None,
) -> Tensor:
    """`input @ weight.T + bias` by this kernel, or the convolution by a window."""
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)  # torch's own, in compiled graphs too
    if ddp is not None:
        leave_indices(ddp)
    if bias is not None and bias.numel() != indices.crow.numel() - 1:
        raise ValueError(f"bias must be ({indices.crow.numel() - 1},), got {tuple(bias.shape)}.")
    input, values, bias = input.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    if kernel is native:  # it sees to it by itself that no thread changes what it reads
        return native.forward(input, values, bias, indices, window)
    with LOCK:
        operands.check_memory(*indices, input, values, bias)
        if window is not None:
            return by_dense_weight.forward(input, values, bias, indices, window)
        result: Tensor = kernel.forward(input, values, bias, indices)
    return result


def backward(
    kernel: ModuleType,
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    indices: Indices,
    needs: Needs,
    window: Window | None = None,
) -> Gradients:
    """Gradients of input, values and bias by this kernel, None where not needed. The first two must be contiguous."""
    values = values.contiguous()
    if kernel is native:
        return native.backward(grad, input, values, indices, needs, window)
    with LOCK:
        operands.check_memory(*indices, input, values, grad)
        if window is not None:
            return by_dense_weight.backward(grad, input, values, indices, needs, window)
        result: Gradients = kernel.backward(grad, input, values, indices, needs)
    return result


def gradient_of_values(grad: Tensor, input: Tensor, indices: Indices, window: Window | None = None) -> Tensor:
    """Elements of `grad.T @ input` at the connections alone, (nnz,): the gradient of values there.

    Shape:
        grad (batch, out_features), input (batch, in_features); of a convolution (batch, out_channels, *out_size) and
        (batch, in_channels, *size). Contiguous, float32 or float64.
    """
    zeros = grad.new_zeros(len(indices.col))
    _, found, _ = backward(kernel_for(zeros), grad, input, zeros, indices, (False, True, False), window)
    assert found is not None
    return found
