"""Says which tensors a kernel may read by their addresses, and checks those that an operator is given."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsify._src.kernels.window import Window, check_input
from sparsify._src.native.library import KINDS, has_memory
from sparsify._src.topology import Indices
from sparsify._src.torch_private import (
    DispatchKey,
    DispatchKeySet,
    TransformType,
    dispatch_keys,
    dispatch_modes,
    excluding_key,
    forward_level,
    is_forward_enabled,
    tracing_state,
    transforms,
)

SUPPORTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes of values; half-precision products are computed in float32."""

NATIVE = (torch.float32, torch.float64)
"""Dtypes that the native kernels compute in."""

_PLAIN = dispatch_keys(torch.empty(0, device="cpu")).raw_repr()
for _key in DispatchKey.CUDA, DispatchKey.AutogradCUDA, DispatchKey.AutocastCUDA:
    _PLAIN |= DispatchKeySet(_key).raw_repr()
_ODD = ~_PLAIN
"""Dispatch keys of what is more or less than memory of a CPU or a GPU: lazily negative, functional, batched, meta..."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its strided memory, on a device where kernels compute."""
    return type(tensor) in KINDS and not dispatch_keys(tensor).raw_repr() & _ODD


def is_direct(input: Tensor, values: Tensor, other: Tensor | None) -> bool:
    """Whether kernels may read these tensors directly, without an operator. A faster `is_plain`, called often.

    Args:
        input, values, other: strided, and on one device.
    """
    return (
        type(input) in KINDS
        and type(values) in KINDS
        and (other is None or type(other) in KINDS)
        and (input.is_cpu or input.is_cuda)
        and not (input.is_neg() or values.is_neg() or (other is not None and other.is_neg()))
        and not dispatch_modes()
        and tracing_state() is None
        and transforms() is None
        and forward_level() < 0
    )


def is_simple(input: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Whether these are as in nearly all calls: direct, on the CPU, a matrix, of one dtype that is `NATIVE`.

    It says all that `checked_input` and `sparse_linear` would ask one after the other, but for the width.
    """
    dtype = values.dtype
    return (
        input.dtype is dtype
        and dtype in NATIVE
        and (bias is None or (bias.dtype is dtype and bias.is_cpu))
        and is_direct(input, values, bias)
        and input.is_cpu
        and values.is_cpu
        and input.layout is torch.strided
        and input.dim() == 2
        and not input.is_nested
        and not torch.is_autocast_enabled("cpu")
    )


def plain(tensors: Iterable[Tensor | None]) -> list[Any]:
    """The tensors without their subclasses, where these have memory like any other tensor."""
    return [t if t is None or type(t) in KINDS else t.as_subclass(Tensor) for t in tensors]


def refuse_tangents(*tensors: Tensor | None) -> None:
    """Check that nothing has a tangent of forward mode, which PyTorch's operators of Python would drop.

    Raises:
        NotImplementedError: something has.
    """
    if forward_level() < 0 or not is_forward_enabled():
        return
    unpack: Any = forward_ad.unpack_dual
    with excluding_key(DispatchKey.ADInplaceOrView, False):  # a compiled graph leaves it out
        found = any(tensor is not None and unpack(tensor).tangent is not None for tensor in tensors)
    if found:
        raise NotImplementedError(
            "input must have no tangent in a graph that was traced, exported or compiled, got a dual tensor. Call the "
            "model itself."
        )


def is_traced() -> bool:
    """Whether torch.jit traces: the sizes of tensors are tensors then, and to compare them would warn."""
    return tracing_state() is not None


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they cannot look into operators."""
    top = transforms()
    return (top is not None and top.key() != TransformType.Functionalize) or forward_level() >= 0


def check(indices: Indices, input: Tensor, values: Tensor, window: Window | None = None, **rest: Tensor | None) -> None:
    """Check the arguments of an operator before kernels read their memory; a graph from a file may pass anything.

    Args:
        rest: bias or grad.
    Raises:
        TypeError: a tensor is sparse, nested or quantized, or of a dtype or device that does not fit the others.
        ValueError: a shape does not fit the others.
    """
    check_width(input, indices, window)
    outs, ins, nnz = len(indices.crow) - 1, len(indices.ccol) - 1, len(values)
    out_size = () if window is None else window.out_size(input.shape[2:])
    shapes = {"input": input.shape, "values": (nnz,), "bias": (outs,), "grad": (len(input), outs, *out_size)}
    for name, tensor in {"input": input, "values": values, **rest}.items():
        if tensor is None:
            continue
        if not is_plain(tensor) or tensor.dtype not in SUPPORTED:
            raise TypeError(f"{name} must be a dense floating-point tensor, got {_kind(tensor)}.")
        if (tensor.dtype, tensor.device) != (values.dtype, values.device):
            raise TypeError(f"{name} must be like values, {_kind(values)}, got {_kind(tensor)}.")
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name} must be of shape {shapes[name]}, got {tuple(tensor.shape)}.")
    for name, index in indices._asdict().items():
        if not is_plain(index) or index.dtype not in (torch.int32, torch.int64) or index.device != values.device:
            raise TypeError(f"{name} must be a vector of int32 or int64 on {values.device}, got {_kind(index)}.")
        if index.dtype != indices.crow.dtype:
            raise TypeError(f"{name} must have the dtype of crow, {indices.crow.dtype}, got {index.dtype}.")
        length = {"crow": outs + 1, "ccol": ins + 1}.get(name, nnz)
        if index.shape != (length,):
            raise ValueError(f"{name} must be of shape {(length,)}, got {tuple(index.shape)}.")


def check_width(input: Tensor, indices: Indices, window: Window | None = None) -> None:
    """Check the shape of an operator's input; what is traced has no more to check."""
    ins = indices.ccol.shape[0] - 1
    if window is not None:
        if (indices.crow.shape[0] - 1) % window.groups:
            raise ValueError(f"window must be of groups that divide the {indices.crow.shape[0] - 1} outputs.")
        check_input(input.shape, window, ins)
    elif input.dim() != 2 or input.shape[1] != ins:
        raise ValueError(f"input must be (batch, {ins}), got {tuple(input.shape)}.")


def check_range(indices: Indices) -> None:
    """Check that indices lead nowhere outside, for the kernels that do not look where they lead.

    Raises:
        ValueError: they do.
    """
    outs, ins, nnz = len(indices.crow) - 1, len(indices.ccol) - 1, len(indices.col)
    for starts in indices.crow, indices.ccol:
        if starts[0] != 0 or starts[-1] != nnz or (torch.diff(starts) < 0).any():
            raise ValueError("indices must be a topology of the layer, got rows or columns that are out of order.")
    for index, bound in (indices.col, ins), (indices.csc_row, outs), (indices.csc_order, nnz):
        if nnz and (int(index.min()) < 0 or int(index.max()) >= bound):
            raise ValueError(f"indices must be a topology of the layer, got some that are not in [0, {bound}).")


def held(values: Tensor, indices: Indices) -> Tensor:
    """`values`, checked and held in memory for kernels that do not check: another thread may replace them.

    Raises:
        ValueError: they are not as many as the connections: another thread has changed these meanwhile.
    """
    values = values.detach()
    if values.numel() != indices.col.numel():
        raise ValueError(f"values must be one for each of {indices.col.numel()} connections, got {values.numel()}.")
    return values


def check_memory(*tensors: Tensor | None) -> None:
    """Check that what kernels read is there, for those that do not look.

    Raises:
        TypeError: the storage of a tensor was freed.
    """
    for tensor in tensors:
        if tensor is not None and not has_memory(tensor):
            raise TypeError(f"tensor must be in memory, got {_kind(tensor)} whose storage was freed.")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.layout} {tensor.dtype} on {tensor.device}"
