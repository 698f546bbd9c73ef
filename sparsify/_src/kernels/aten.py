"""PyTorch's own products of CSR matrices: cuSPARSE on CUDA, MKL on the CPU."""

import warnings
from functools import cache

import torch
from torch import Tensor

from sparsify._src.kernels.operands import held
from sparsify._src.topology import Indices

MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


def available() -> bool:
    """Whether this PyTorch has them: with CUDA, or with MKL."""
    return MKL or torch.cuda.is_available()


def serves(values: Tensor) -> bool:
    """Whether these kernels can compute with `values`."""
    device = values.device.type
    return (device == "cuda" or (device == "cpu" and MKL)) and values.dtype in (torch.float32, torch.float64)


def forward(input: Tensor, values: Tensor, bias: Tensor | None, indices: Indices) -> Tensor:
    """`input @ weight.T + bias`."""
    values = held(values, indices)
    weight = csr_tensor(indices.crow, indices.col, values, (len(indices.crow) - 1, input.shape[1]))
    output = _product(input, weight)
    return output if bias is None else output + bias


def backward(
    grad: Tensor, input: Tensor, values: Tensor, indices: Indices, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, values and bias, as far as needed."""
    values, shape = held(values, indices), (grad.shape[1], input.shape[1])
    grad_input = grad_values = None
    if needs[0]:
        transposed = csr_tensor(indices.ccol, indices.csc_row, values[indices.csc_order], shape[::-1])
        grad_input = _product(grad, transposed)
    if needs[1]:
        pattern = csr_tensor(indices.crow, indices.col, torch.zeros_like(values), shape)
        grad_values = torch.sparse.sampled_addmm(pattern, grad.t(), input).values()
    return grad_input, grad_values, grad.sum(0) if needs[2] else None


def _product(input: Tensor, matrix: Tensor) -> Tensor:
    """`input @ matrix.T`."""
    with torch.autocast(input.device.type, enabled=False):  # its half precision is not made for sparse matrices
        return (matrix @ input.t()).t().contiguous()


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """PyTorch's CSR tensor of these parts, which it shares; they are not checked."""
    _say_beta_once()
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


@cache
def _say_beta_once() -> None:
    """PyTorch warns at a process's first CSR tensor that their support is in beta: not our user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))
