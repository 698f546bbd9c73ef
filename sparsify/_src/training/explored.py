"""What evolution did: the share of places that were ever active."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify._src.topology import Shape
from sparsify._src.vectors import mixed

SIZE = 4096
"""Numbers in a sketch: the standard error of the share is 1 / sqrt(SIZE), 1.6 %, and 32 KiB are held."""

PADDING = -1
"""Fills a saved sketch up to SIZE numbers; as unsigned, the largest there is."""


class Explored:
    """How many places of a layer were ever active, estimated in constant memory.

    Keeps the `SIZE` smallest hashes of all places ever active ("k minimum values"): were they n of all 2^64 hashes, the
    largest kept would be near SIZE / n of the range. Exact while no more than SIZE places were active.

    Args:
        flat: the first topology.
        shape: (out_features, in_features).
    Source: Bar-Yossef et al. 2002, "Counting distinct elements in a data stream".
    """

    def __init__(self, flat: Tensor, shape: Shape) -> None:
        self.places = shape[0] * shape[1]
        self.sketch = torch.empty(0, dtype=torch.int64, device="cpu")
        self.add(flat)

    def add(self, flat: Tensor) -> None:
        """Count these places too."""
        hashes = mixed(flat.cpu().numpy().view(np.uint64))
        kept = self.sketch.numpy().view(np.uint64)
        if len(kept) == SIZE:
            hashes = hashes[hashes < kept[-1]]
        if len(hashes) > SIZE:
            hashes = np.partition(hashes, SIZE - 1)[:SIZE]
        both = np.sort(np.concatenate([kept, hashes]))
        both = both[np.append(True, both[1:] != both[:-1])] if len(both) else both
        self.sketch = torch.from_numpy(both[:SIZE].view(np.int64).copy())

    @property
    def count(self) -> float:
        """Places ever active."""
        if len(self.sketch) < SIZE:
            return float(len(self.sketch))
        largest = int(self.sketch.numpy().view(np.uint64)[-1])
        return min(float(self.places), (SIZE - 1) * 2.0**64 / largest)

    @property
    def share(self) -> float:
        """Places ever active, as a share of all: in-time over-parametrization's exploration rate R_s."""
        return self.count / self.places

    def state_dict(self) -> dict[str, Any]:
        """The sketch, filled up to SIZE numbers so that a checkpoint loads in place, and how many of them count."""
        sketch = torch.full((SIZE,), PADDING, dtype=torch.int64, device="cpu")
        sketch[: len(self.sketch)] = self.sketch
        return {"sketch": sketch, "count": len(self.sketch)}

    def loaded(self, state: Mapping[str, Any]) -> "Explored":
        """A new one of the same places, with what `state_dict()` gave; `state` must have passed `check_state_dict`."""
        new = Explored.__new__(Explored)
        new.places, new.sketch = self.places, state["sketch"].cpu()[: state["count"]].clone()
        return new

    def check_state_dict(self, state: object, key: str) -> None:
        """Raise ValueError, which names `key`, unless `loaded` can take `state`."""
        if not isinstance(state, dict) or set(state) != {"sketch", "count"}:
            raise refused(key, 'must hold "sketch" and "count"', list(state) if isinstance(state, dict) else state)
        count, numbers = state["count"], _plain_numbers(state["sketch"])
        most = min(SIZE, self.places)
        if type(count) is not int or not 0 <= count <= most:
            raise refused(f'{key}["count"]', f"must be a whole number in [0, {most}]", count)
        if numbers is None:
            raise refused(f'{key}["sketch"]', f"must be a plain vector of {SIZE} torch.int64", state["sketch"])
        counted, padding = numbers[:count].view(np.uint64), numbers[count:]
        if (counted[1:] <= counted[:-1]).any() or (numbers[:count] == PADDING).any():
            rule = f'must begin with {count} ("count") hashes of places, rising strictly as unsigned'
            raise refused(f'{key}["sketch"]', rule, "other numbers")
        if (padding != PADDING).any():
            raise refused(f'{key}["sketch"]', f'must be {PADDING} from {count} ("count") on', "other numbers")


def _plain_numbers(sketch: object) -> np.ndarray | None:
    """The numbers of a saved sketch, None if it is anything but a plain vector of SIZE int64."""
    if type(sketch) is not Tensor or sketch.layout != torch.strided or sketch.dtype != torch.int64:
        return None
    try:
        numbers = np.ascontiguousarray(sketch.cpu().numpy())
    except (RuntimeError, TypeError, NotImplementedError):  # without storage, or with a lazy bit
        return None
    return numbers if numbers.shape == (SIZE,) else None


def refused(key: str, rule: str, got: object) -> ValueError:
    """The error that says which entry of a state dict is wrong."""
    return ValueError(f"{key} {rule}, got {_shown(got)}.")


def _shown(value: object) -> str:
    """`value` in a few words, whatever it is."""
    try:
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)}, {value.layout}, on {value.device}"
        words = repr(value)
    except Exception:  # a whole number of more than 4,300 digits, a nested tensor
        return f"a {type(value).__name__} that cannot be shown"
    return words if len(words) <= 200 else f"{words[:200]}..."
