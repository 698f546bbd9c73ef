"""Checks what a sparse layer is given, before a kernel reads it."""

import torch
from torch import Tensor

from sparsify._src import kernels
from sparsify._src.kernels.operands import is_traced
from sparsify._src.kernels.window import SIZES


def checked_input(input: Tensor, values: Tensor, in_features: int) -> Tensor:
    """`input` (*, in_features) as the products of `values` need it: cast, where autocast is at work.

    Raises:
        ValueError: it has another shape, or is on another device.
        TypeError: it is sparse or nested, or has another dtype.
    """
    _check_kind(input, values)
    # What torch.jit traces is compared by the operator, when it runs.
    if input.dim() == 0 or (not is_traced() and input.shape[-1] != in_features):
        raise ValueError(f"input must be (*, {in_features}), got {tuple(input.shape)}.")
    return _cast(input, values)


def checked_images(input: Tensor, values: Tensor, channels: int, dims: int) -> Tensor:
    """The same of input (batch, channels, *size), or without a batch, with so many dimensions of size."""
    _check_kind(input, values)
    if input.dim() not in (dims + 1, dims + 2) or (not is_traced() and input.shape[-dims - 1] != channels):
        shape = f"{channels}, {SIZES[dims]}"
        raise ValueError(f"input must be (batch, {shape}) or ({shape}), got {tuple(input.shape)}.")
    return _cast(input, values)


def _check_kind(input: Tensor, values: Tensor) -> None:
    if input.layout is not torch.strided or input.is_nested:
        kind = "a nested one" if input.is_nested else input.layout
        raise TypeError(f"input must be a dense tensor, got {kind}. Use to_dense() or nested.to_padded_tensor().")
    if values.is_complex():
        raise TypeError(f"the layer's dtype must be one of {kernels.SUPPORTED}, got {values.dtype}. Convert it.")


def _cast(input: Tensor, values: Tensor) -> Tensor:
    """In the dtype of the values, or of autocast where that is at work."""
    device = input.device
    if device != values.device:
        raise ValueError(f"input must be on the layer's device {values.device}, got {device}.")
    both = input.dtype, values.dtype  # autocast takes neither float64 nor what is not floating-point
    cast = not input.is_meta and torch.is_autocast_enabled(device.type)
    if cast and input.is_floating_point() and torch.float64 not in both:
        input = input.to(torch.get_autocast_dtype(device.type))
    elif input.dtype != values.dtype:
        raise TypeError(f"input must have the layer's dtype {values.dtype}, got {input.dtype}.")
    return input
