"""torch-sparse, imported where its classes or kernels are used, when they are used first.

Nothing else needs it or torch-scatter, which it imports: training and serving do without. Its import takes longer than
the rest of ours, and warns: it scripts its classes with torch.jit, which torch has deprecated.
"""

import sys
import warnings
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsify._src import topology
from sparsify._src.topology import Indices, Shape

if TYPE_CHECKING:
    from torch_sparse import SparseTensor

INSTALL = "pip install setuptools wheel && pip install --no-build-isolation torch-scatter torch-sparse"

_lock = Lock()
_module: ModuleType | None = None


def torch_sparse() -> ModuleType:
    """The module `torch_sparse`; its operators are registered then.

    Raises:
        ImportError: torch-sparse or torch-scatter is not installed, or was built for another torch.
    """
    if _module is None:
        _import()
    return _module  # type: ignore[return-value]


def is_importable() -> bool:
    """Whether `torch_sparse` can be imported, which this tries."""
    try:
        torch_sparse()
    except ImportError:
        return False
    return True


def _import() -> None:
    global _module
    with _lock, warnings.catch_warnings():  # two threads in the latter would restore each other's filters
        warnings.filterwarnings("ignore", r"`torch\.jit\.", module=r"torch\.jit\.")
        try:
            import torch_sparse
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "torch-sparse and torch-scatter must be installed where `layer.weight` or the kernels 'torch_sparse' "
                f"are used, got: {error}. Train, save and serve without them, or install both, after torch: {INSTALL}",
                name=error.name,
            ) from error
        except Exception as error:  # what is raised depends on which symbol or version does not fit
            raise ImportError(
                f"torch-sparse and torch-scatter must be built for the torch that is installed, {torch.__version__}, "
                f"got {type(error).__name__}: {error}. Build both anew: {INSTALL} --no-deps "
                "--force-reinstall --no-cache-dir"
            ) from error
        _module = torch_sparse


def is_sparse_tensor(weight: object) -> bool:
    """Whether it is a `torch_sparse.SparseTensor`; where torch-sparse has not been imported, nothing is."""
    kind = getattr(sys.modules.get("torch_sparse"), "SparseTensor", None)
    return kind is not None and isinstance(weight, kind)


def sparse_tensor(values: Tensor, indices: Indices, shape: Shape) -> "SparseTensor":
    """The matrix of these values as a `torch_sparse.SparseTensor`, attached to autograd."""
    sparse = torch_sparse()
    storage = sparse.SparseStorage(
        row=topology.rows(indices.crow, len(values)),
        rowptr=indices.crow.long(),
        col=indices.col.long(),
        value=values,
        sparse_sizes=shape,
        rowcount=None,
        colptr=indices.ccol.long(),
        colcount=None,
        csr2csc=indices.csc_order.long(),
        csc2csr=None,
        is_sorted=True,
        trust_data=True,
    )
    return sparse.SparseTensor.from_storage(storage)
