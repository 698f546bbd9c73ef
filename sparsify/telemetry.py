"""What evolution did: the share of places that were ever active."""

import numpy as np
import torch
from torch import Tensor

from sparsify.topology import Shape

SIZE = 4096
"""Numbers in a sketch: the standard error of the share is 1 / sqrt(SIZE), 1.6 %, and 32 KiB are held."""


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
        hashes = _hash(flat.cpu().numpy().view(np.uint64))
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


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Sixty-four well-mixed bits of each number (splitmix64); different numbers have different ones."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
