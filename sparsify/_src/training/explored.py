"""What evolution did: the share of places that were ever active."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify._src.topology import Shape
from sparsify._src.training import saved
from sparsify._src.training.saved import PADDING
from sparsify._src.vectors import mixed

SIZE = 4096
"""Numbers in a sketch: the standard error of the share is 1 / sqrt(SIZE), 1.6 %, and 32 KiB are held."""


def hashes_of(flat: Tensor) -> np.ndarray:
    """The hash of each of these places; different places have different ones."""
    return mixed(flat.cpu().numpy().view(np.uint64))


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
        self.add_hashes(hashes_of(flat))

    def add_hashes(self, hashes: np.ndarray) -> None:
        """Count the places of these hashes too."""
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
        return saved.padded("sketch", self.sketch, SIZE)

    def loaded(self, state: Mapping[str, Any]) -> "Explored":
        """A new one of the same places, with what `state_dict()` gave; `state` must have passed `check_state_dict`."""
        new = Explored.__new__(Explored)
        new.places, new.sketch = self.places, saved.unpadded("sketch", state)
        return new

    def check_state_dict(self, state: object, key: str) -> None:
        """Raise ValueError, which names `key`, unless `loaded` can take `state`."""
        counted = saved.checked("sketch", state, SIZE, min(SIZE, self.places), key).view(np.uint64)
        if (counted[1:] <= counted[:-1]).any() or (counted.view(np.int64) == PADDING).any():
            rule = f'must begin with {len(counted)} ("count") hashes of places, rising strictly as unsigned'
            raise saved.refused(f'{key}["sketch"]', rule, "other numbers")
