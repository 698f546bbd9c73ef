"""Pure functions on topologies: sorted, unique flat indices `row * in_features + col` (int64)."""

import hashlib
import random
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsify.native import library
from sparsify.native.library import call

Shape = tuple[int, int]
"""(out_features, in_features) of a layer."""

Digest = tuple[int, int]
"""Number of connections, and 64 bits of a hash."""


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
    """

    addresses: tuple[int, ...] = ()


def located(indices: Indices) -> Indices:
    """The same, `Located` where the compiled library can read them."""
    if not all(native(index) and index.is_contiguous() for index in indices):
        return indices
    found = Located(*indices)
    found.addresses = tuple(library.address(index, index.nbytes, []) for index in indices)
    return found


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key`, the same in every process, whatever happened before."""
    return torch.Generator("cpu").manual_seed(random.Random("/".join(map(str, key))).getrandbits(32))


def connection_count(density: float, shape: Shape) -> int:
    """Connections of a layer of `shape` at `density`: the nearest whole number, at least one."""
    return max(1, round(density * shape[0] * shape[1]))


def sample(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Exactly `count` distinct numbers of range(total), every such set as likely; sorted, on the CPU.

    Takes O(count) memory and O(count log count) time, however large `total` is.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count must be in [0, {total}], got {count}.")
    if total <= 8 * count:
        return torch.randperm(total, generator=generator, device="cpu")[:count].sort().values
    picked = torch.empty(0, dtype=torch.int64, device="cpu")
    while len(picked) < count:  # nearly always once: the margin is four deviations of the expected collisions
        expected = count * count / (2 * total)
        margin = int(expected + 4 * expected**0.5) + 1
        more = torch.randint(total, (count - len(picked) + margin,), generator=generator, device="cpu")
        picked = torch.unique_consecutive(_sorted(torch.cat([picked, more]), total))
    surplus = sample(len(picked), len(picked) - count, generator)
    keep = torch.ones_like(picked, dtype=torch.bool)
    keep[surplus] = False
    return picked[keep]


def _sorted(numbers: Tensor, total: int) -> Tensor:
    """Numbers of range(total), sorted."""
    if native(numbers):
        call("sparsify_sort", numbers, len(numbers), total)
        return numbers
    return numbers.sort().values


def sample_outside(flat: Tensor, total: int, count: int, generator: torch.Generator) -> Tensor:
    """Exactly `count` numbers of range(total) that are not in `flat` (sorted, unique), uniformly; sorted.

    Samples ranks among the inactive places, so nothing is ever rejected and a nearly full layer costs no more than an
    empty one.
    """
    return places_of_ranks(flat, sample(total - len(flat), count, generator).to(flat.device))


def places_of_ranks(flat: Tensor, rank: Tensor) -> Tensor:
    """The inactive places of these ranks: 0 is the first number not in `flat` (both sorted)."""
    for name, vector in ("flat", flat), ("rank", rank):
        check_vector(name, vector, (torch.int64,))
    if native(flat):
        place = empty(len(rank))
        call("sparsify_places", flat.contiguous(), len(flat), rank.contiguous(), len(rank), place)
        return place
    inactive_before = flat - torch.arange(len(flat), device=flat.device)
    return rank + torch.searchsorted(inactive_before, rank, right=True)


def common(flat: Tensor, places: Tensor) -> int | None:
    """The first of these places that is in `flat`, None where none is; both are sorted vectors of int64."""
    if native(flat) and native(places):
        found = torch.empty(1, dtype=torch.int64, device="cpu")
        call("sparsify_common", flat.contiguous(), len(flat), places.contiguous(), len(places), found)
        return None if int(found) < 0 else int(found)
    if not len(flat):
        return None
    both = places[flat[torch.searchsorted(flat, places).clamp_(max=len(flat) - 1)] == places]
    return int(both[0]) if len(both) else None


def merge(flat: Tensor, survives: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """The new topology, and where each of its connections comes from.

    Args:
        flat: the old topology, (nnz,).
        survives: which of it stay, (nnz,) bool.
        grown: what comes, sorted, all outside the old topology.
    Returns:
        the new topology, sorted, and for each connection its position in cat([flat, grown]).
    Raises:
        ValueError: one is not such a vector.
    """
    for name, vector, dtype in (
        ("flat", flat, torch.int64),
        ("survives", survives, torch.bool),
        ("grown", grown, torch.int64),
    ):
        check_vector(name, vector, (dtype,))
    if len(survives) != len(flat):
        raise ValueError(f"survives must be of each of the {len(flat)} connections, got {len(survives)}.")
    if native(flat):
        count = int(survives.sum()) + len(grown)
        merged, origin = empty(count), empty(count)
        sources = flat.contiguous(), survives.contiguous(), len(flat), grown.contiguous(), len(grown)
        call("sparsify_merge", *sources, count, merged, origin)
        return merged, origin
    origin = torch.cat([positions(survives), torch.arange(len(grown), device=flat.device) + len(flat)])
    merged, order = torch.sort(torch.cat([flat, grown])[origin])
    return merged, origin[order]


def empty(length: int, dtype: torch.dtype = torch.int64, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised vector. On the CPU in NumPy's memory, which comes in huge pages where there are any: the faults
    of small ones would cost more than all the rest of an evolution."""
    if str(device) != "cpu" or not length:
        return torch.empty(length, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(length * dtype.itemsize, dtype=np.uint8)).view(dtype)


def holds_numbers(tensor: Tensor) -> bool:
    """Whether `tensor` is more than a shape: neither on the meta device nor a fake or a wrapper of others."""
    return not tensor.is_meta and not torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)


def native(flat: Tensor) -> bool:
    """Whether the compiled library works on `flat`."""
    return library.LIBRARY is not None and library.is_plain(flat)


def positions(chosen: Tensor) -> Tensor:
    """Where a boolean vector is true, ascending."""
    if library.is_plain(chosen):  # six times as fast as torch's
        return torch.from_numpy(chosen.numpy().nonzero()[0])
    return chosen.nonzero().squeeze(1)


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
        counters = min(library.threads(nnz), 1 + nnz // shape[1])  # each thread counts in a vector of its own
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
        call(name, crow.contiguous(), col.contiguous(), len(col), *shape, library.threads(len(col)), flat)
        return flat
    return rows(crow, len(col)) * shape[1] + col


def check_flat(flat: Tensor, shape: Shape) -> None:
    """Raise ValueError unless `flat` is a topology of `shape`."""
    places = shape[0] * shape[1]
    if (flat[1:] <= flat[:-1]).any() or (len(flat) and (int(flat[0]) < 0 or int(flat[-1]) >= places)):
        raise ValueError(f"a topology must be sorted, unique places of range({places}), got some that are not.")


def check_vector(name: str, vector: object, dtypes: Collection[torch.dtype]) -> None:
    """Raise ValueError unless `vector` is a one-dimensional tensor, with numbers in it, of one of these dtypes."""
    kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(vector, Tensor):
        raise ValueError(f"{name} must be a vector of {kinds}, got {type(vector).__name__}.")
    if vector.layout != torch.strided or not holds_numbers(vector):
        kind = f"{type(vector).__name__} of layout {vector.layout} on {vector.device}"
        raise ValueError(f"{name} must be an ordinary vector of {kinds}, got a {kind}.")
    if vector.dtype not in dtypes or vector.dim() != 1:
        raise ValueError(f"{name} must be a vector of {kinds}, got {vector.dtype} {tuple(vector.shape)}.")


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
        call("sparsify_digest", flat.contiguous(), len(flat), library.threads(len(flat)), bits)
        return len(flat), int(bits)
    return len(flat), int(mixed(flat.cpu().numpy().view(np.uint64)).sum(dtype=np.uint64).view(np.int64))


def check_digest(name: str, digest: object, shape: Shape) -> None:
    """Raise ValueError unless `digest` can be one of a topology of `shape`."""
    whole = isinstance(digest, (tuple, list)) and len(digest) == 2 and all(type(number) is int for number in digest)
    if not whole or not 0 <= digest[0] <= shape[0] * shape[1] or not -(2**63) <= digest[1] < 2**63:  # type: ignore[index]
        raise ValueError(f"{name} must be a number of connections and 64 bits, got {digest!r}.")


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Sixty-four well-mixed bits of each number (splitmix64); different numbers have different ones."""
    bits = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits


def fingerprint(*tensors: Tensor) -> str:
    """A short hash: the same for the same numbers, in every process, on every device and for every index dtype."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        if not holds_numbers(tensor):
            continue
        numbers = tensor.detach().cpu().contiguous().view(-1)
        numbers = numbers if numbers.is_floating_point() else numbers.long()
        digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` lowest scores, ascending; among equal scores the first positions. NaN is above all.

    Raises:
        ValueError: scores is no vector, or has fewer than `count`.
    """
    if scores.dim() != 1 or count > len(scores):
        raise ValueError(f"scores must be a vector of at least {count}, got {tuple(scores.shape)}.")
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    if native(scores) and scores.dtype in (torch.float32, torch.float64):
        chosen = empty(count)
        call(f"sparsify_lowest_{8 * scores.itemsize}", scores.contiguous(), len(scores), count, chosen)
        return chosen
    return scores.sort(stable=True).indices[:count].sort().values
