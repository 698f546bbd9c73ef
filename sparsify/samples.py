"""Some of the numbers of a vector: what shows, at next to no cost, whether other code has written to it."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsify import library, topology

COUNT = 256
"""Numbers in a sample, where nothing else is said: enough to tell what correlates from what does not."""

ALIKE = 0.5
"""Correlation from which on two samples are alike; of unrelated ones 256 numbers have 0 +- 0.06."""


class Sample:
    """Some numbers of a vector as they were when they were last taken.

    Args:
        vector: (n,), or longer; whether it is memory that the compiled library can read does not matter.
        positions: of the numbers in the vector, (count,) int64.
    Attributes:
        numbers: at these positions, (count,).
    """

    def __init__(self, vector: Tensor, positions: Tensor) -> None:
        self.vector, self.positions, self.length = vector, positions, len(vector)
        self.numbers = self.now()
        self.place = self._place()

    @classmethod
    def evenly(cls, vector: Tensor) -> "Sample":
        """Of evenly spaced positions."""
        return cls(vector, spread(len(vector), COUNT, vector.device))

    def now(self) -> Tensor:
        """The numbers that are there now."""
        return at(self.vector, self.positions)

    def fits(self) -> bool:
        """Whether the vector has its length and its memory still."""
        return has_numbers(self.vector) and tuple(self.vector.shape) == (self.length,)

    def take(self) -> None:
        """Take the numbers that are there now."""
        if self.fits():
            self.numbers, self.place = self.now(), self._place()

    def has_changed(self) -> bool:
        """Whether the numbers are others now. On a GPU, where to look would be to wait: what PyTorch knows decides."""
        if not self.fits():
            return True
        if self.vector.device.type != "cpu" and self.place == self._place():
            return False
        now = self.now()
        return now.dtype != self.numbers.dtype or not torch.equal(now, self.numbers)

    def _place(self) -> tuple[int, int]:
        return self.vector.data_ptr(), version(self.vector)


class Samples:
    """Samples that are taken, and compared, all at once.

    Most steps find nothing, and for them this is a look at each vector's address and one call of the library.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)
        self._located: list[tuple[Sample, Tensor, Tensor, int, int, torch.UntypedStorage, int]] = []
        self._others = self._samples
        self._arguments: tuple[object, ...] = ()

    def take(self) -> None:
        """Take the numbers that are there now."""
        self._locate()
        if self._arguments:
            library.LIBRARY.sparsify_sample(*self._arguments, 1)  # type: ignore[union-attr]
        for sample in self._others:
            sample.take()

    def have_changed(self) -> bool:
        """Whether some numbers are others now."""
        self._locate()
        if self._arguments and library.LIBRARY.sparsify_sample(*self._arguments, 0):  # type: ignore[union-attr]
            return True
        return any(sample.has_changed() for sample in self._others)

    def _locate(self) -> None:
        """Have the addresses of all vectors that are plain memory. Storages that are held are not given back."""
        for sample, numbers, vector, pointer, size, storage, room in self._located:
            if (
                sample.numbers is not numbers
                or vector.data_ptr() != pointer
                or vector.nbytes != size
                or storage.nbytes() != room
            ):
                break
        else:
            if self._arguments or not self._samples:
                return
        self._located, self._others, self._arguments = [], [], ()
        rows: list[tuple[int, int, int, int, int]] = []
        for sample in self._samples:
            vector = sample.vector
            if not (sample.fits() and topology.native(vector) and vector.is_contiguous()):
                self._others.append(sample)
                continue
            if sample.numbers.dtype != vector.dtype or not topology.native(sample.numbers):
                sample.numbers = sample.numbers.to(vector, copy=True)  # it differs then, and is compared by value
            pointer, storage, positions, numbers = (
                vector.data_ptr(),
                vector.untyped_storage(),
                sample.positions,
                sample.numbers,
            )
            self._located.append((sample, numbers, vector, pointer, vector.nbytes, storage, storage.nbytes()))
            rows.append((pointer, positions.data_ptr(), len(positions), vector.itemsize, numbers.data_ptr()))
        if rows:
            kinds = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
            columns = zip(kinds, zip(*rows, strict=True), strict=True)
            self._arguments = (len(rows), *((kind * len(rows))(*column) for kind, column in columns))


def spread(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` positions of range(length), evenly spaced."""
    count = min(count, length)
    return torch.arange(count, device=device) * length // max(1, count)


def at(vector: Tensor, positions: Tensor) -> Tensor:
    """The numbers at these positions, detached."""
    return vector.detach().index_select(0, positions.to(vector.device))


def has_numbers(vector: Tensor) -> bool:
    """Whether a vector has numbers that can be read."""
    strided = vector.layout == torch.strided and topology.holds_numbers(vector)
    return strided and vector.dim() == 1 and library.has_memory(vector)


def version(vector: Tensor) -> int:
    """How often PyTorch has written to a vector; tensors that were made in inference mode do not know."""
    return -1 if vector.is_inference() else vector._version


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Of two samples; None where one of them is constant, or too short to tell."""
    return _correlation(*(_centred(sample) for sample in (one, other)))


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two samples correlate more than unrelated ones of their length ever do."""
    found = correlation(one, other)
    return found is not None and found > _least(len(one))


def holds_share(now: Tensor, before: Tensor, source: Tensor, least: float = 1e-5) -> bool:
    """Whether `now` is made of `before` and of a share of `source`, as an average is, and not of `before` alone.

    Args:
        now, before, source: samples at the same positions.
        least: how much of `now` must not follow from `before`.
    """
    return share(now, before, source, least) > _least(len(now))


def share(now: Tensor, before: Tensor, source: Tensor, least: float = 1e-5) -> float:
    """How surely `now` holds a share of `source` beside `before`, however small it is: 1 if it does, 0 if not.

    It is the correlation of what of `now` does not follow from `before` with what of `source` does not.
    """
    new, old, given = (_centred(sample) for sample in (now, before, source))
    square, whole, size = float(old @ old), np.linalg.norm(new), np.linalg.norm(given)
    if square:
        new, given = new - (new @ old) / square * old, given - (given @ old) / square * old
    if np.linalg.norm(new) <= least * whole or np.linalg.norm(given) <= 1e-9 * size:
        return 0.0  # nothing has come, or nothing can be said
    return _correlation(new, given) or 0.0


def _centred(sample: Tensor) -> np.ndarray:
    numbers: np.ndarray = sample.detach().to("cpu", torch.float64).numpy()
    return numbers - numbers.mean() if len(numbers) else numbers


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    if len(one) < 4 or not norms or not np.isfinite(norms) or norms < 1e-30:
        return None
    return float(one @ other) / norms


def _least(count: int) -> float:
    """Four standard deviations of the correlation of unrelated samples, where that is more than `ALIKE`."""
    return float(min(0.999, max(ALIKE, 4 / count**0.5)))
