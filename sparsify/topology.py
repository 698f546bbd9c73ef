"""Pure functions on topologies: sorted, unique flat indices `row * in_features + col` (int64)."""

import hashlib
import random

import numpy as np
import torch
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
        first = np.ones(len(picked), dtype=bool)
        np.not_equal(picked[1:], picked[:-1], out=first[1:])
        picked = picked[first]
    keep = np.ones(len(picked), dtype=bool)
    keep[sample(len(picked), len(picked) - count, generator).numpy()] = False
    return torch.from_numpy(picked[keep])


def sample_outside(flat: Tensor, total: int, count: int, generator: torch.Generator) -> Tensor:
    """Exactly `count` numbers of range(total) that are not in `flat` (sorted, unique), uniformly; sorted.

    Samples ranks among the inactive places and maps rank to place by merging them with the active ones, so nothing is
    ever rejected and a nearly full layer costs no more than an empty one.
    """
    rank = sample(total - len(flat), count, generator).to(flat.device)
    inactive_before = flat - torch.arange(len(flat), device=flat.device)
    merged = merge_order(inactive_before, rank)
    active_before = positions(merged >= len(flat)) - torch.arange(count, device=flat.device)
    return rank + active_before


def merge_order(first: Tensor, second: Tensor) -> Tensor:
    """The order that sorts two sorted vectors laid end to end; among equals those of `first` come first."""
    both = torch.cat([first, second])
    if both.device.type == "cpu":  # NumPy's stable sort merges sorted runs in linear time
        return torch.from_numpy(np.argsort(both.numpy(), kind="stable"))
    return torch.sort(both, stable=True).indices


def positions(chosen: Tensor) -> Tensor:
    """Where a boolean vector is true, ascending."""
    if chosen.device.type == "cpu":  # six times as fast as torch's
        return torch.from_numpy(chosen.numpy().nonzero()[0])
    return chosen.nonzero().squeeze(1)


def to_csr(flat: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """`crow` (out_features + 1,), `row` (nnz,) and `col` (nnz,) of a topology."""
    starts = torch.arange(shape[0] + 1, device=flat.device) * shape[1]
    crow = torch.searchsorted(flat, starts)
    row = rows(crow, len(flat))
    return crow, row, flat - row * shape[1]


def rows(crow: Tensor, nnz: int) -> Tensor:
    """The row of every connection, (nnz,)."""
    return torch.repeat_interleave(torch.diff(crow), output_size=nnz)


def from_csr(crow: Tensor, col: Tensor, shape: Shape) -> Tensor:
    """The flat indices of a topology given as `crow` and `col`."""
    return rows(crow, len(col)) * shape[1] + col


def to_csc(col: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """`ccol` (in_features + 1,) and the order (nnz,) that sorts a row-major topology by column."""
    ccol = torch.zeros(shape[1] + 1, dtype=torch.int64, device=col.device)
    torch.cumsum(torch.bincount(col, minlength=shape[1]), 0, out=ccol[1:])
    if col.device.type == "cpu":
        keys = col.numpy().astype(np.uint16) if shape[1] <= 2**16 else col.numpy()  # 16 bits: NumPy counts, not sorts
        return ccol, torch.from_numpy(np.argsort(keys, kind="stable"))
    return ccol, torch.sort(col, stable=True).indices


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
