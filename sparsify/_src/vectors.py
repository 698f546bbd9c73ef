"""Vectors of places and of numbers: sampled, merged, sorted, compared. What is compiled has a plain form beside it."""

import hashlib
import random
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from sparsify._src.native import library
from sparsify._src.native.library import call
from sparsify._src.torch_private import DispatchKey, dispatch_keys


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key`, the same in every process, whatever happened before."""
    return torch.Generator("cpu").manual_seed(random.Random("/".join(map(str, key))).getrandbits(32))


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

    Samples numbers among the inactive places, so nothing is ever rejected and a nearly full layer costs no more than an
    empty one.
    """
    return free_places(flat, sample(total - len(flat), count, generator).to(flat.device))


def free_places(flat: Tensor, number: Tensor) -> Tensor:
    """The inactive places of these numbers: 0 is the first that is not in `flat` (both sorted)."""
    for name, vector in ("flat", flat), ("number", number):
        check_vector(name, vector, (torch.int64,))
    if native(flat):
        place = empty(len(number))
        call("sparsify_places", flat.contiguous(), len(flat), number.contiguous(), len(number), place)
        return place
    inactive_before = flat - torch.arange(len(flat), device=flat.device)
    return number + torch.searchsorted(inactive_before, number, right=True)


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
    return not tensor.is_meta and not dispatch_keys(tensor).has(DispatchKey.Python)


def has_numbers(vector: Tensor) -> bool:
    """Whether a vector has numbers that can be read: on no device are they, once its storage was freed."""
    strided = vector.layout == torch.strided and holds_numbers(vector)
    return strided and vector.dim() == 1 and library.has_memory(vector)


def native(flat: Tensor) -> bool:
    """Whether the compiled library works on `flat`."""
    return library.LIBRARY is not None and library.is_plain(flat)


def positions(chosen: Tensor) -> Tensor:
    """Where a boolean vector is true, ascending."""
    if library.is_plain(chosen):  # six times as fast as torch's
        return torch.from_numpy(chosen.numpy().nonzero()[0])
    return chosen.nonzero().squeeze(1)


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
