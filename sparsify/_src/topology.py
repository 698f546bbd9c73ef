"""Pure functions on topologies: sorted, unique flat indices `row * in_features + col` (int64)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsify._src.native import library
from sparsify._src.native.library import call
from sparsify._src.vectors import check_vector, empty, mixed, native

Shape = tuple[int, int]
"""(out_features, in_features) of a layer."""

Digest = tuple[int, int]
"""Number of connections, and 64 bits of a hash."""


WORK = 15
"""Operations of a product that take as long as to index a connection: see `library.threads`."""


class Indices(NamedTuple):
    """A topology as the products need it, all of one dtype.

    crow, col: where each row begins (out_features + 1,), and the columns (nnz,), row-major: CSR.
    ccol, csc_row: where each column begins (in_features + 1,), and the rows (nnz,), column-major: CSC.
    csc_order: the row-major position of each column-major connection, (nnz,).
    """

    crow: Tensor
    col: Tensor
    ccol: Tensor
    csc_row: Tensor
    csc_order: Tensor


class Located(Indices):
    """Indices whose addresses are known to be those of plain memory.

    addresses: in the order of the indices; none where PyTorch has copied the tuple.
    products: what a forward and a backward product say of them, for `library.Product.from_buffer_copy`.
    """

    addresses: tuple[int, ...] = ()
    products: tuple[bytes, ...] = ()


def located(indices: Indices) -> Indices:
    """The same, `Located` where the compiled library can read them."""
    if not all(native(index) and index.is_contiguous() for index in indices):
        return indices
    found = Located(*indices)
    crow, col, ccol, row, order = (library.address(index, index.nbytes, []) for index in indices)
    sizes = {"out": indices.crow.shape[0] - 1, "in": indices.ccol.shape[0] - 1, "nnz": indices.col.shape[0]}
    sizes["index_bytes"] = indices.crow.itemsize
    found.addresses = crow, col, ccol, row, order
    found.products = (
        bytes(library.Product(starts=crow, indices=col, **sizes)),
        bytes(library.Product(starts=ccol, indices=row, order=order, is_backward=True, **sizes)),
    )
    return found


def connection_count(density: float, shape: Shape) -> int:
    """Connections of a layer of `shape` at `density`: the nearest whole number, at least one."""
    return max(1, round(density * shape[0] * shape[1]))


def index_dtype(nnz: int, shape: Shape) -> torch.dtype:
    """What holds the indices of a layer: int32 where every number fits, else int64."""
    return torch.int32 if max(nnz, *shape) < 2**31 else torch.int64


def index(flat: Tensor, shape: Shape) -> Indices:
    """The indices of a topology.

    Raises:
        ValueError: flat is not a vector of int64, not sorted and unique, or leaves the shape.
    """
    check_vector("flat", flat, (torch.int64,))
    nnz, device = len(flat), flat.device
    dtype = index_dtype(nnz, shape)
    if native(flat):
        lengths = shape[0] + 1, nnz, shape[1] + 1, nnz, nnz
        result = Indices(*(empty(length, dtype) for length in lengths))
        counters = min(library.threads(WORK * nnz), 1 + nnz // shape[1])  # each thread counts in a vector of its own
        call(f"sparsify_index_{8 * dtype.itemsize}", flat.contiguous(), nnz, *shape, counters, *result)
        return result
    check_flat(flat, shape)
    crow = torch.searchsorted(flat, torch.arange(shape[0] + 1, device=device) * shape[1])
    row = rows(crow, nnz)
    col = flat - row * shape[1]
    csc_order = torch.sort(col, stable=True).indices
    ccol = torch.searchsorted(col[csc_order], torch.arange(shape[1] + 1, device=device))
    return Indices(*(index.to(dtype) for index in (crow, col, ccol, row[csc_order], csc_order)))


def rows(crow: Tensor, nnz: int) -> Tensor:
    """The row of every connection, (nnz,) int64."""
    return torch.repeat_interleave(torch.diff(crow).long(), output_size=nnz)


def from_csr(crow: Tensor, col: Tensor, shape: Shape) -> Tensor:
    """The flat indices of a topology given as `crow` and `col`, which must be valid."""
    if len(crow) != shape[0] + 1:
        raise ValueError(f"crow must have out_features + 1 = {shape[0] + 1} entries, got {len(crow)}.")
    if native(col) and crow.dtype == col.dtype:
        flat = empty(len(col))
        name = f"sparsify_flat_{8 * col.dtype.itemsize}"
        call(name, crow.contiguous(), col.contiguous(), len(col), *shape, library.threads(WORK * len(col)), flat)
        return flat
    return rows(crow, len(col)) * shape[1] + col


def check_flat(flat: Tensor, shape: Shape) -> None:
    """Raise ValueError unless `flat` is a topology of `shape`."""
    places = shape[0] * shape[1]
    if (flat[1:] <= flat[:-1]).any() or (len(flat) and (int(flat[0]) < 0 or int(flat[-1]) >= places)):
        raise ValueError(f"a topology must be sorted, unique places of range({places}), got some that are not.")


def check_csr(crow: Tensor, col: Tensor, nnz: int, shape: Shape) -> None:
    """Raise ValueError unless `crow` and `col` are a valid topology of `nnz` connections in `shape`."""
    for name, index in ("crow", crow), ("col", col):
        check_vector(name, index, (torch.int32, torch.int64))
    if len(crow) != shape[0] + 1:
        raise ValueError(f"crow must have out_features + 1 = {shape[0] + 1} entries, got {len(crow)}.")
    if len(col) != nnz:
        raise ValueError(f"col must have one entry for each of the {nnz} values, got {len(col)}.")
    if crow[0] != 0 or crow[-1] != nnz or (crow[1:] < crow[:-1]).any():
        raise ValueError(f"crow must rise from 0 to {nnz} and never fall.")
    if nnz and (int(col.min()) < 0 or int(col.max()) >= shape[1]):
        raise ValueError(f"col must be in [0, {shape[1]}), got {int(col.min())} to {int(col.max())}.")
    rises = col[1:] > col[:-1]
    begins = crow[(crow > 0) & (crow < nnz)].long()
    rises[begins - 1] = True  # from one row to the next it may fall
    if not rises.all():
        raise ValueError("col must rise strictly within each row: connections sorted and unique.")


def check(indices: Indices, nnz: int, shape: Shape) -> None:
    """Raise ValueError unless `indices` are a valid topology of `nnz` connections in `shape`, the same by columns."""
    check_csr(indices.crow, indices.col, nnz, shape)
    expected = index(from_csr(indices.crow, indices.col, shape), shape)
    for name, found, right in zip(Indices._fields, indices, expected, strict=True):
        if not torch.equal(found, right):
            raise ValueError(f"{name} must belong to the same connections as crow and col.")


def digest(flat: Tensor) -> Digest:
    """What tells this topology from others of the same shape, in every process and on every device."""
    if native(flat):
        bits = torch.empty(1, dtype=torch.int64, device="cpu")
        call("sparsify_digest", flat.contiguous(), len(flat), library.threads(WORK * len(flat)), bits)
        return len(flat), int(bits)
    return len(flat), int(mixed(flat.cpu().numpy().view(np.uint64)).sum(dtype=np.uint64).view(np.int64))


def check_digest(name: str, digest: object, shape: Shape) -> None:
    """Raise ValueError unless `digest` can be one of a topology of `shape`."""
    whole = isinstance(digest, (tuple, list)) and len(digest) == 2 and all(type(number) is int for number in digest)
    if not whole or not 0 <= digest[0] <= shape[0] * shape[1] or not -(2**63) <= digest[1] < 2**63:  # type: ignore[index]
        raise ValueError(f"{name} must be a number of connections and 64 bits, got {digest!r}.")
