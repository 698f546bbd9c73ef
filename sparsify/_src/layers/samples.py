"""Samples of vectors: they show, at next to no cost, whether other code has written to a vector."""

import ctypes
import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from sparsify._src import vectors
from sparsify._src.native import library
from sparsify._src.torch_private import version

COUNT = 256
"""Numbers in a sample, where nothing else is said: enough to tell what correlates from what does not."""

ALIKE = 0.5
"""Correlation from which on two samples are alike; of unrelated ones 256 numbers have 0 +- 0.06."""


class Sample:
    """Some numbers of a vector, as they were when the sample was last taken.

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
        return vectors.has_numbers(self.vector) and tuple(self.vector.shape) == (self.length,)

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
        self._rows: object = None
        self._arguments: tuple[int, ...] = ()

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
        """Look up the addresses of all vectors that are plain memory, and hold their storages."""
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
            if not (sample.fits() and vectors.native(vector) and vector.is_contiguous()):
                self._others.append(sample)
                continue
            if sample.numbers.dtype != vector.dtype or not vectors.native(sample.numbers):
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
            self._rows = (ctypes.c_int64 * (5 * len(rows)))(*chain.from_iterable(rows))
            self._arguments = (len(rows), ctypes.addressof(self._rows))


def spread(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` positions of range(length), evenly spaced."""
    count = min(count, length)
    return torch.arange(count, device=device) * length // max(1, count)


def at(vector: Tensor, positions: Tensor) -> Tensor:
    """The numbers at these positions, detached."""
    return vector.detach().index_select(0, positions.to(vector.device))


def likeness(one: Tensor, other: Tensor) -> float | None:
    """The correlation of two samples; None where one of them is constant, or too short to tell."""
    return compare(one, other, other)[0]


def is_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two samples correlate more than unrelated ones of their length ever do."""
    found = likeness(one, other)
    return found is not None and found > _least(len(one))


def holds_share(now: Tensor, before: Tensor, source: Tensor) -> bool:
    """Whether `now` is made of `before` and of a share of `source`, as an average is, and not of `before` alone."""
    return is_share(compare(now, before, source)[1], len(now))


def is_share(share: float, count: int) -> bool:
    """Whether what `compare` gives for samples of so many numbers is more than it ever is by chance."""
    return share > _least(count)


def compare(now: Tensor, before: Tensor, source: Tensor, least: float = 1e-5) -> tuple[float | None, float]:
    """What `now` has of `before`, and of `source` beside it. All are samples at the same positions.

    Args:
        least: what of `now` does not follow from `before` counts from this part of it on.
    Returns:
        the correlation of `now` and `before`; and how surely `now` holds a share of `source`, however small it is: the
        correlation of what does not follow from `before` in both, 0 where there is nothing.
    """
    if len(now) < 4:
        return None, 0.0
    numbers = torch.stack([sample.detach().to("cpu", torch.float64) for sample in (now, before, source)])
    numbers = numbers - numbers.mean(1, keepdim=True)
    (nn, nb, ns), (_, bb, bs), (_, _, ss) = (numbers @ numbers.T).tolist()
    if not math.isfinite(nn + bb + ss) or nn < 1e-60:
        return None, 0.0
    if bb < 1e-60:  # constant
        bb, nb, bs = 1.0, 0.0, 0.0
    rest, given, share = nn - nb * nb / bb, ss - bs * bs / bb, 0.0
    if rest > least * least * nn and given > max(1e-12 * ss, 1e-60):
        share = (ns - nb * bs / bb) / math.sqrt(rest * given)
    return nb / math.sqrt(nn * bb) if nb else None, share


def _least(count: int) -> float:
    """Four standard deviations of the correlation of unrelated samples, where that is more than `ALIKE`."""
    return float(min(0.999, max(ALIKE, 4 / max(1, count) ** 0.5)))
