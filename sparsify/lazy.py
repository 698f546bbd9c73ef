"""torch-sparse, imported where its classes or kernels are used, when they are used first.

Its import takes longer than the rest of ours, and warns: it scripts its classes with torch.jit, which torch has
deprecated.
"""

import warnings
from threading import Lock
from types import ModuleType

_lock = Lock()
_module: ModuleType | None = None


def torch_sparse() -> ModuleType:
    """The module `torch_sparse`; its operators are registered then."""
    if _module is None:
        _import()
    return _module  # type: ignore[return-value]


def _import() -> None:
    global _module
    with _lock, warnings.catch_warnings():  # two threads in the latter would restore each other's filters
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning, r"torch\.jit\.")
        import torch_sparse

        _module = torch_sparse
