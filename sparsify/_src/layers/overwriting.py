"""How a layer's tensors get other numbers: in place where they fit, because others hold them."""

import torch
from torch import Tensor, nn

from sparsify._src import vectors
from sparsify._src.native import library
from sparsify._src.topology import Indices


def put_values(parameter: nn.Parameter, values: Tensor, grad: Tensor | None) -> None:
    """Give `parameter` other values and another gradient; it stays the same object, whatever their number.

    Args:
        values: (nnz,); grad: the same, or None.
    """
    if values.shape == parameter.shape and library.has_memory(parameter):
        parameter.copy_(values)
    else:
        # A graph that is still alive, such as the last loss's, holds a gradient accumulator of the old length.
        # Only another dtype makes autograd forget it.
        parameter.grad = None
        other = torch.float16 if values.itemsize > 2 else torch.float32
        parameter.data = values.new_empty(0, dtype=other)
        parameter.data = values
    if grad is not None and parameter.grad is not None:
        parameter.grad.copy_(grad)  # DDP may hold it as a view of the bucket that it sends
    else:
        parameter.grad = grad


def put_indices(buffers: dict[str, Tensor | None], indices: Indices) -> None:
    """Put other indices into the buffers of their names; no product sees some of them old and some new."""
    held = [buffers[name] for name in Indices._fields]
    there = [old for old in held if old is not None]
    fit = len(there) == len(held) and all(
        (old.shape, old.dtype) == (new.shape, new.dtype) and library.has_memory(old)
        for old, new in zip(there, indices, strict=True)
    )
    if fit and all(vectors.native(index) and index.is_contiguous() for index in (*there, *indices)):
        library.put(indices, there)
        return
    for name, index in indices._asdict().items():
        buffer = buffers[name]
        if buffer is not None and fit:
            buffer.copy_(index)
        else:
            buffers[name] = index


def check_values(values: object, nnz: int) -> None:
    """Raise ValueError unless `values` is one floating-point number for each connection."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"values must be a tensor of floating-point numbers, got {kind}.")
    if tuple(values.shape) != (nnz,):
        raise ValueError(f"values must be one for each of the {nnz} connections, got {tuple(values.shape)}.")
