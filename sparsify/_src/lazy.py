"""torch-sparse, imported where its classes or kernels are used, when they are used first.

Its import takes longer than the rest of ours, and warns: it scripts its classes with torch.jit, which torch has
deprecated.
"""

import warnings
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor

from sparsify._src import topology
from sparsify._src.topology import Indices, Shape

if TYPE_CHECKING:
    from torch_sparse import SparseTensor

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
