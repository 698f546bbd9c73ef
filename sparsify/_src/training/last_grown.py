"""Which connections a layer has grown last: whether they are there still tells how well they were chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify._src.training import saved
from sparsify._src.training.explored import hashes_of

SIZE = 1024
"""Places that are kept: the standard error of a share is at most 0.5 / sqrt(SIZE), 1.6 %, and 8 KiB are held."""


@dataclass(frozen=True, eq=False)
class LastGrown:
    """Connections that grew when a layer evolved last: all of them, or of more those SIZE whose hashes are smallest.

    places: sorted flat indices, on the CPU.
    """

    places: Tensor

    @classmethod
    def none(cls) -> "LastGrown":
        """That nothing has grown."""
        return cls(torch.empty(0, dtype=torch.int64, device="cpu"))

    @classmethod
    def of(cls, grown: Tensor, hashes: np.ndarray | None = None) -> "LastGrown":
        """That these places have grown, sorted flat indices.

        Args:
            hashes: of the places, where they are known.
        """
        places = grown.cpu().numpy()
        if len(places) > SIZE:
            hashes = hashes_of(grown) if hashes is None else hashes
            few = np.flatnonzero(hashes < np.uint64(min(2**64 - 1, round(2**64 * 1.25 * SIZE / len(places)))))
            few = few if len(few) >= SIZE else np.arange(len(hashes))  # hardly ever: the margin is eight deviations
            chosen = few[np.argpartition(hashes[few], SIZE - 1)[:SIZE]]
            places = places[np.sort(chosen)]
        return cls(torch.from_numpy(places.copy()))

    def survived(self, flat: Tensor) -> float | None:
        """The share of them that is in the topology `flat`; None where there are none."""
        if not len(self.places):
            return None
        if not len(flat):
            return 0.0
        places = self.places.to(flat.device)
        found = flat[torch.searchsorted(flat, places).clamp_(max=len(flat) - 1)] == places
        return int(found.sum()) / len(places)

    def state_dict(self) -> dict[str, Any]:
        """The places, filled up to SIZE numbers so that a checkpoint loads in place, and how many of them count."""
        return saved.padded("places", self.places, SIZE)

    @classmethod
    def loaded(cls, state: Mapping[str, Any]) -> "LastGrown":
        """What `state_dict()` gave; `state` must have passed `check_state_dict`."""
        return cls(saved.unpadded("places", state))

    @staticmethod
    def check_state_dict(state: object, key: str, most: int) -> None:
        """Raise ValueError, which names `key`, unless `state` holds some of `most` places."""
        places = saved.checked("places", state, SIZE, min(SIZE, most), key)
        if (places[1:] <= places[:-1]).any() or (len(places) and not 0 <= places[0] <= places[-1] < most):
            rule = f'must begin with {len(places)} ("count") places in [0, {most}), rising strictly'
            raise saved.refused(f'{key}["places"]', rule, "other numbers")
