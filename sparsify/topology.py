"""Pure functions on topologies: sorted, unique flat indices `row * in_features + col` (int64)."""

import hashlib
import random
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

Shape = tuple[int, int]
"""(out_features, in_features) of a layer."""


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key`, the same in every process, whatever happened before."""
    return torch.Generator().manual_seed(random.Random("/".join(map(str, key))).getrandbits(32))


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
        return torch.randperm(total, generator=generator)[:count].sort().values
    picked = np.empty(0, dtype=np.int64)  # NumPy sorts int64 six times as fast as torch
    while len(picked) < count:  # nearly always once: the margin is four deviations of the expected collisions
        expected = count * count / (2 * total)
        margin = int(expected + 4 * expected**0.5) + 1
        more = torch.randint(total, (count - len(picked) + margin,), generator=generator)
        picked = np.sort(np.concatenate([picked, more.numpy()]))
        picked = picked[np.diff(picked, prepend=-1) > 0]
    surplus = sample(len(picked), len(picked) - count, generator)
    return torch.from_numpy(np.delete(picked, surplus.numpy()))


def sample_outside(flat: Tensor, total: int, count: int, generator: torch.Generator) -> Tensor:
    """Exactly `count` numbers of range(total) that are not in `flat` (sorted, unique), uniformly; sorted.

    Samples ranks among the inactive places and maps rank to place by a binary search, so nothing is ever rejected
    and a nearly full layer costs no more than an empty one.
    """
    rank = sample(total - len(flat), count, generator).to(flat.device)
    inactive_before = flat - torch.arange(len(flat), device=flat.device)
    return rank + searchsorted(inactive_before, rank, right=True)


def positions(chosen: Tensor) -> Tensor:
    """Where a boolean vector is true, ascending."""
    if chosen.device.type == "cpu":  # six times as fast as torch's
        return torch.from_numpy(np.flatnonzero(chosen.numpy()))
    return chosen.nonzero().squeeze(1)


def searchsorted(sorted: Tensor, queries: Tensor, right: bool = False) -> Tensor:
    """`torch.searchsorted` for queries that are sorted themselves, which NumPy makes use of."""
    if sorted.device.type == "cpu":
        return torch.from_numpy(np.searchsorted(sorted.numpy(), queries.numpy(), side="right" if right else "left"))
    return torch.searchsorted(sorted, queries, right=right)


class Merged(NamedTuple):
    """Two disjoint topologies in one: the sorted union, and where each one's entries are in it (ascending)."""

    flat: Tensor
    first_at: Tensor
    second_at: Tensor


def merge(first: Tensor, second: Tensor) -> Merged:
    """Merge two sorted, disjoint topologies in linear memory."""
    second_at = searchsorted(first, second) + torch.arange(len(second), device=second.device)
    is_first = torch.ones(len(first) + len(second), dtype=torch.bool, device=first.device)
    is_first[second_at] = False
    first_at = positions(is_first)
    flat = torch.empty(len(is_first), dtype=torch.int64, device=first.device)
    flat.index_copy_(0, first_at, first).index_copy_(0, second_at, second)
    return Merged(flat, first_at, second_at)


def to_csr(flat: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """`crow` (out_features + 1,) and `col` (nnz,) of a topology."""
    starts = torch.arange(shape[0] + 1, device=flat.device) * shape[1]
    return searchsorted(flat, starts), flat % max(shape[1], 1)


def rows(crow: Tensor, nnz: int) -> Tensor:
    """The row of every connection, (nnz,)."""
    return torch.repeat_interleave(torch.diff(crow), output_size=nnz)


def from_csr(crow: Tensor, col: Tensor, shape: Shape) -> Tensor:
    """The flat indices of a topology given as `crow` and `col`."""
    return rows(crow, len(col)) * shape[1] + col


def to_csc(crow: Tensor, col: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """`ccol` (in_features + 1,) and the order (nnz,) that sorts a row-major topology by column."""
    if col.device.type == "cpu":  # SciPy counts where torch sorts: linear time
        by_column = csr_array((np.arange(len(col)), col.numpy(), crow.numpy()), shape=shape).tocsc()
        return torch.from_numpy(by_column.indptr).long(), torch.from_numpy(by_column.data)
    by_column = torch.sort(col, stable=True)
    return torch.searchsorted(by_column.values, torch.arange(shape[1] + 1, device=col.device)), by_column.indices


def check_csr(crow: Tensor, col: Tensor, nnz: int, shape: Shape) -> None:
    """Raise ValueError unless `crow` and `col` are a valid topology of `nnz` connections in `shape`."""
    for name, index in ("crow", crow), ("col", col):
        if index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
            raise ValueError(f"{name} must be a vector of int32 or int64, got {index.dtype} {tuple(index.shape)}.")
    if len(crow) != shape[0] + 1:
        raise ValueError(f"crow must have out_features + 1 = {shape[0] + 1} entries, got {len(crow)}.")
    if len(col) != nnz:
        raise ValueError(f"col must have one entry for each of the {nnz} values, got {len(col)}.")
    if crow[0] != 0 or crow[-1] != nnz or (torch.diff(crow) < 0).any():
        raise ValueError(f"crow must rise from 0 to {nnz} and never fall.")
    if nnz and (int(col.min()) < 0 or int(col.max()) >= shape[1]):
        raise ValueError(f"col must be in [0, {shape[1]}), got {int(col.min())} to {int(col.max())}.")
    if (torch.diff(from_csr(crow, col, shape)) <= 0).any():
        raise ValueError("col must rise strictly within each row: connections sorted and unique.")


def fingerprint(crow: Tensor, col: Tensor) -> str:
    """A short hash of a topology: equal for equal topologies, in every process and on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for index in crow, col:
        digest.update(index.detach().cpu().to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` lowest scores, ascending; among equal scores the first positions."""
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.kthvalue(scores, count).values
    chosen = scores < threshold
    tied = positions(scores == threshold)
    chosen[tied[: count - int(chosen.sum())]] = True
    return positions(chosen)
