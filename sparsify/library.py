"""The compiled library: finds and loads it, and declares what it holds."""

import ctypes
from importlib.util import find_spec
from typing import Any

from torch import Tensor, get_num_threads

ENOUGH = 50_000
"""Operations from which on several threads are faster than one."""


def _load() -> ctypes.CDLL | None:
    """The library; None where it was not built (no C compiler when sparsify was installed)."""
    found = find_spec("sparsify._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    number, threads, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.sparsify_linear.argtypes = [*[ctypes.c_int] * 4, number, number, number, threads, *[pointer] * 10]
    for bits in "32", "64":
        getattr(library, f"sparsify_lowest_{bits}").argtypes = [pointer, number, number, pointer]
        getattr(library, f"sparsify_lowest_{bits}").restype = None
        getattr(library, f"sparsify_flat_{bits}").argtypes = [pointer, pointer, number, number, threads, pointer]
        getattr(library, f"sparsify_index_{bits}").argtypes = [pointer, number, number, number, threads, *[pointer] * 5]
    library.sparsify_sort.argtypes = [pointer, number, number]
    library.sparsify_places.argtypes = [pointer, number, pointer, number, pointer]
    library.sparsify_merge.argtypes = [pointer, pointer, number, pointer, number, number, pointer, pointer]
    for name in "sparsify_flat_32", "sparsify_flat_64", "sparsify_places", "sparsify_merge":
        getattr(library, name).restype = None
    return library


LIBRARY = _load()


def call(name: str, *arguments: Tensor | int | None) -> None:
    """Call a function of the library; tensors are passed by address and must be contiguous.

    Raises:
        MemoryError: it could not allocate what it needs.
    """
    passed: list[Any] = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if getattr(LIBRARY, name)(*passed):
        raise MemoryError(f"no memory for the work space of {name}.")


def threads(work: int) -> int:
    """How many threads to use for so many operations."""
    return get_num_threads() if work > ENOUGH else 1
