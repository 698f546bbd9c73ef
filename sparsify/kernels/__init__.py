"""The sparse products and their gradients: the one place that knows which kernels compute them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from sparsify.kernels import native, torch_sparse

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes of values; half-precision products are computed in float32."""

_forced: str | None = os.environ.get("SPARSIFY_KERNELS") or None


def available() -> tuple[str, ...]:
    """The kernels that are here, best first: "native" (CPU, where it was compiled) and "torch_sparse"."""
    return ("native", "torch_sparse") if native.LIBRARY is not None else ("torch_sparse",)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Compute with the kernels `name` within the block; $SPARSIFY_KERNELS does so for a whole process.

    Raises:
        ValueError: `name` is not available.
    """
    global _forced
    _check(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def linear(input: Tensor, values: Tensor, bias: Tensor | None, indices: dict[str, Tensor]) -> Tensor:
    """`input @ weight.T + bias` for a weight of sorted connections; differentiable in input, values and bias.

    Args:
        indices: crow (out_features + 1,), ccol (in_features + 1,), and row, col, csc_order (nnz,).

    Shape:
        input (*, in_features) -> (*, out_features), contiguous; values (nnz,).
    """
    dtype = input.dtype
    if dtype in (torch.bfloat16, torch.float16):
        input, values = input.float(), values.float()
        bias = None if bias is None else bias.float()
    if native.LIBRARY is None and _forced is None and values.device.type == "cpu":
        _warn_of_slowness()
    chosen = native if _forced != "torch_sparse" and native.serves(values) else torch_sparse
    output: Tensor = chosen.linear(input.reshape(-1, input.shape[-1]), values, bias, indices)
    return output.view(*input.shape[:-1], output.shape[1]).to(dtype)


@cache
def _warn_of_slowness() -> None:
    warnings.warn(
        "sparsify's native CPU kernels were not compiled when it was installed; torch-sparse's serve instead, "
        "several times slower. Install a C compiler and reinstall sparsify.",
        stacklevel=4,
    )


def _check(name: str) -> None:
    if name not in available():
        raise ValueError(f"kernels must be one of {available()}, got {name!r}.")


if _forced:
    _check(_forced)
