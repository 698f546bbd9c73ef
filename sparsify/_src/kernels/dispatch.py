"""Which kernel computes: the best that is here, or the one that was asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from torch import Tensor

from sparsify._src import lazy
from sparsify._src.kernels import aten, native, torch_sparse
from sparsify._src.warning import warn

KERNELS = {"native": native, "aten": aten, "torch_sparse": torch_sparse}
"""By name, in the order in which they are preferred on the CPU."""

_forced: ContextVar[str | None] = ContextVar("forced", default=os.environ.get("SPARSIFY_KERNELS") or None)


def available() -> tuple[str, ...]:
    """The kernels that are here, best first.

    "native": our own, on the CPU, where they were compiled. "aten": PyTorch's products of CSR matrices, on the CPU with
    MKL, and on CUDA. "torch_sparse": the reference, where torch-sparse can be imported: on the CPU, and on CUDA where
    it was built for it, preferred there.

    Example:
        >>> "torch_sparse" in kernels.available()
        True
    """
    return tuple(_available())


def best() -> str:
    """The first of `available()`, without trying to import those after it; where there is none, the one to install."""
    return next(_available(), "torch_sparse")


def _available() -> Iterator[str]:
    return (name for name, kernel in KERNELS.items() if kernel.available())


@contextmanager
def use(name: str) -> Iterator[None]:
    """Compute with the kernels `name` within the block, in this thread; $SPARSIFY_KERNELS does so for a whole process.

    Raises:
        ValueError: `name` is not available.
        ImportError: "torch_sparse" is not, and why.
    Example:
        >>> layer, images = SparseLinear(784, 10, density=0.1), torch.randn(32, 784)
        >>> with kernels.use("torch_sparse"):
        ...     reference = layer(images)
        >>> torch.allclose(layer(images), reference, atol=1e-5)
        True
    """
    _check(name)
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def kernel_for(values: Tensor) -> ModuleType:
    """The kernel that computes with `values`: the forced one, else the first that serves."""
    forced = _forced.get()
    if forced is not None:
        if not KERNELS[forced].serves(values):
            kind = f"{values.dtype} on {values.device}"
            raise RuntimeError(f"kernels {forced!r}, which were asked for, do not serve {kind}.")
        return KERNELS[forced]
    if native.serves(values):
        return native
    on_cpu = values.device.type == "cpu"
    names = KERNELS if on_cpu else reversed(KERNELS)
    name = next(name for name in names if KERNELS[name].serves(values))
    if on_cpu and not native.available():
        _warn_of_slowness(name)
    return KERNELS[name]


@cache
def _warn_of_slowness(name: str) -> None:
    warn(
        "sparsify's native CPU kernels were not compiled when it was installed; the kernels "
        f"{name!r} serve instead, and are slower. Install a C compiler and reinstall sparsify."
    )


def _check(name: str) -> None:
    if name not in KERNELS or not KERNELS[name].available():
        if name == "torch_sparse":
            lazy.torch_sparse()
        raise ValueError(f"kernels must be one of {available()}, got {name!r}.")


if forced := _forced.get():
    _check(forced)
