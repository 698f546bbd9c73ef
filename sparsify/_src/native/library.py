"""The compiled library: finds and loads it, and declares what it holds."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import NoReturn

import torch
from torch import Tensor, get_num_threads, nn
from torch.autograd.graph import increment_version

from sparsify._src.torch_private import dispatch_keys

KINDS = frozenset((Tensor, nn.Parameter))
"""Classes of tensors that leave everything to PyTorch: others may hold their numbers elsewhere."""


def _plain_keys(inference: bool) -> int:
    with torch.inference_mode(inference):
        keys: int = dispatch_keys(torch.empty(0, device="cpu")).raw_repr()
        return keys


PLAIN = frozenset(map(_plain_keys, (False, True)))
"""What PyTorch's dispatcher knows of a tensor that is nothing but memory of the CPU. Tensors of other devices and
layouts, traced, fake and functional ones, and those that are to be negated when they are read have other keys."""

OUTSIDE = 2
"""What a function of the library returns when indices lead out of an array; 1 stands for a lack of memory."""

ENOUGH = 1_000_000
"""Operations of a product (a connection and a row of input, say) from which several threads are used: 0.1 ms of work.

Two threads are no faster than one below a million of them, even on a quiet machine. To share work costs it some
microseconds, and where another process has taken one of the processors away, milliseconds, in which all wait."""


class Product(ctypes.Structure):
    """What `sparsify_linear` computes: `product` of native/library.h, which says what each field means."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("out", "in", "batch", "nnz", "room")),
        *((name, ctypes.c_void_p) for name in ("starts", "indices", "order", "values", "bias", "x", "grad")),
        *((name, ctypes.c_void_p) for name in ("result", "grad_values", "grad_bias")),
        *((name, ctypes.c_int) for name in ("level", "real_bytes", "index_bytes", "threads", "sharers")),
        ("is_backward", ctypes.c_bool),
    )


class Convolution(ctypes.Structure):
    """What `sparsify_convolution` computes: `convolution` of native/library.h."""

    _fields_ = (
        ("linear", Product),
        ("groups", ctypes.c_int64),
        *((n, ctypes.c_int64 * 3) for n in ("size", "out_size", "kernel", "stride", "padding", "dilation")),
    )


def _load() -> ctypes.CDLL | None:
    """The library; None where it was not built (no C compiler when sparsify was installed).

    Raises:
        ImportError: it was compiled from the sources of another version, or finds no OpenMP runtime.
    """
    found = find_spec("sparsify._src.native._compiled")
    if found is None or found.origin is None:
        return None
    library = _opened(found.origin)
    number, threads, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    sizes = {"sparsify_product_size": Product, "sparsify_convolution_size": Convolution}
    if any(getattr(library, name, int)() != ctypes.sizeof(kind) for name, kind in sizes.items()):
        raise ImportError(
            f"the compiled library {found.origin} must be of the same version as sparsify's Python files, got one of "
            "another: reinstall sparsify, so that it is compiled again."
        )
    library.sparsify_linear.argtypes = [ctypes.POINTER(Product)]
    library.sparsify_convolution.argtypes = [ctypes.POINTER(Convolution)]
    for bits in "32", "64":
        getattr(library, f"sparsify_lowest_{bits}").argtypes = [pointer, number, number, pointer]
        getattr(library, f"sparsify_flat_{bits}").argtypes = [pointer, pointer, *[number] * 3, threads, pointer]
        getattr(library, f"sparsify_index_{bits}").argtypes = [pointer, number, number, number, threads, *[pointer] * 5]
    library.sparsify_digest.argtypes = [pointer, number, threads, pointer]
    library.sparsify_common.argtypes = [pointer, number, pointer, number, pointer]
    library.sparsify_sample.argtypes = [number, pointer, ctypes.c_bool]
    library.sparsify_put.argtypes = [number, pointer, pointer, pointer]
    library.sparsify_sort.argtypes = [pointer, number, number]
    library.sparsify_places.argtypes = [pointer, number, pointer, number, pointer]
    library.sparsify_merge.argtypes = [pointer, pointer, number, pointer, number, number, pointer, pointer]
    return library


def _opened(path: str) -> ctypes.CDLL:
    """The library at `path`, with the OpenMP runtime of PyTorch.

    It is linked with none: its functions are found in what `import torch` has loaded, under whatever name, and so no
    second runtime comes with threads of its own. Where a PyTorch keeps its runtime to itself, naming it shares it.
    """
    with suppress(OSError):
        return ctypes.CDLL(path)
    try:
        ctypes.CDLL("libgomp.so.1", ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            f"the compiled library {path} must find its OpenMP functions in the runtime that PyTorch has loaded, or in "
            f"libgomp.so.1, got: {error}. Install libgomp (Debian, Ubuntu: libgomp1), and compile with gcc "
            "(CC=gcc pip install --force-reinstall ...)."
        ) from error


LIBRARY = _load()


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a function of the library. Tensors are passed by address.

    Raises:
        TypeError: a tensor is not plain memory, for which an address could stand.
        ValueError: indices lead out of the arrays that they are indices of.
        MemoryError: it could not allocate what it needs.
    """
    held: list[object] = []
    passed = [address(a, a.nbytes, held) if isinstance(a, Tensor) else a for a in arguments]
    status = getattr(LIBRARY, name)(*passed)
    if status:
        _fail(name, status)


def multiply(product: Product) -> None:
    """Compute a product; errors as of `call`."""
    status = LIBRARY.sparsify_linear(product)  # type: ignore[union-attr]  # who calls this has looked
    if status:
        _fail("sparsify_linear", status)


def convolve(convolution: Convolution) -> None:
    """Compute a convolution; errors as of `call`."""
    status = LIBRARY.sparsify_convolution(convolution)  # type: ignore[union-attr]  # who calls this has looked
    if status:
        _fail("sparsify_convolution", status)


def _fail(name: str, status: int) -> NoReturn:
    if status == OUTSIDE:
        raise ValueError("indices must be a topology of the layer, got some that are unsorted or out of range.")
    raise MemoryError(f"no memory for the work space of {name}.")


def put(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Copy tensors into others of their sizes, which no product reads meanwhile."""
    held: list[object] = []
    sizes = [tensor.nbytes for tensor in tensors]
    passed = [
        (kind * len(tensors))(*numbers)
        for kind, numbers in (
            (ctypes.c_void_p, [address(tensor, size, held) for tensor, size in zip(others, sizes, strict=True)]),
            (ctypes.c_void_p, [address(tensor, size, held) for tensor, size in zip(tensors, sizes, strict=True)]),
            (ctypes.c_int64, sizes),
        )
    ]
    LIBRARY.sparsify_put(len(tensors), *passed)  # type: ignore[union-attr]  # who calls this has looked
    for tensor in others:
        if not tensor.is_inference():
            increment_version(tensor)


def address(tensor: Tensor, size: int, held: list[object]) -> int:
    """The one gate between Python and C: the address of a tensor that is plain memory of at least `size` bytes.

    Args:
        tensor: on the CPU, strided and contiguous.
        size: in bytes, of what will be read or written there.
        held: gets what must stay alive as long as the address is used: another thread may replace a tensor's memory.
    Raises:
        TypeError: it is traced, fake, functional, a wrapper, to be negated when it is read, of another layout or
            device, too short, or its storage was freed.
    """
    known = type(tensor) in KINDS and tensor.is_cpu and not tensor.is_neg()  # a short cut; `data_ptr` refuses the rest
    if (known or is_plain(tensor)) and tensor.is_contiguous():
        storage = tensor.untyped_storage()
        pointer = tensor.data_ptr()
        if not size or (pointer and storage.data_ptr() + storage.nbytes() >= pointer + size):
            held.append(storage)
            return pointer
    raise TypeError(
        f"tensor must be plain, contiguous memory of {size} bytes on the CPU, got {type(tensor).__name__} "
        f"{tuple(tensor.shape)} of {tensor.dtype} with the dispatch keys {dispatch_keys(tensor)}, or one "
        "whose storage was freed."
    )


def has_memory(tensor: Tensor) -> bool:
    """Whether the storage of a strided tensor is there; it can be freed, and the tensor stay."""
    storage = tensor.untyped_storage()
    return storage.nbytes() >= tensor.nbytes + tensor.storage_offset() * tensor.itemsize


def overwrite(tensor: Tensor, numbers: Tensor) -> None:
    """Give `tensor` other numbers, in place where they fit: whoever else holds it has them too."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape == numbers.shape and has_memory(tensor):
            tensor.copy_(numbers)
        else:
            tensor.data = numbers


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but memory of the CPU, as those are that PyTorch's factory functions give."""
    return dispatch_keys(tensor).raw_repr() in PLAIN


def threads(work: int) -> int:
    """How many threads to use for so many operations."""
    return get_num_threads() if work > ENOUGH else 1
