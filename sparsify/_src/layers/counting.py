"""Counts the gradients that come to the values of a sparse layer."""

from functools import partial
from weakref import ReferenceType, ref

from torch import Tensor, nn

from sparsify._src.layers.matrix import SparseMatrix


def count_gradients(matrix: SparseMatrix) -> None:
    """Count in `gradients` those that come to the values, from the next forward pass on.

    The layer itself begins then, because another thread may ask than the one that trains it: PyTorch crashes where a
    hook is registered while a backward pass runs.
    """
    matrix.to_count = matrix._counted is None or matrix._counted() is not matrix._parameters.get("values")


def begin(matrix: SparseMatrix) -> None:
    """Begin to, where the values are a parameter that trains."""
    values = matrix._parameters.get("values")
    if isinstance(values, nn.Parameter) and values.is_leaf and values.requires_grad:  # not one of torch.func
        matrix.to_count, matrix._counted = False, ref(values)
        values.register_post_accumulate_grad_hook(partial(_count, ref(matrix)))  # type: ignore[no-untyped-call]


def _count(matrix: ReferenceType[SparseMatrix], _: Tensor) -> None:
    if (counting := matrix()) is not None:
        counting.gradients += 1
