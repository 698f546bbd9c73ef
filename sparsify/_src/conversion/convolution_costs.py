"""`Costs`: how long a convolution takes, dense and sparse, from a few coefficients of a processor.

A time is a sum: of each kind of work there is so much, and it costs so many milliseconds apiece. `fitted` finds the
coefficients of a processor from times that were measured on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
import numpy.typing as npt

from sparsify._src.conversion.places import Place

Numbers = npt.NDArray[np.float64]

DENSE = ("call", "multiply-add", "output and tap", "input and tap", "number in and out", "weight")
"""Kinds of work of a dense convolution. With few channels in or out a multiply-add costs more: the third and the fourth
are multiply-adds divided by the input channels and by the output channels of a group."""

SPARSE = ("call", "step of a lane", "number in and out", "connection")
"""Kinds of work of a sparse one. Each connection steps along the vectors of the output, whatever their lanes hold."""

UNPACKED = 0.35
"""What a number costs that goes in or out as it lies in memory, beside one that is packed."""

STRIPS = (8, 7, 6, 4, 2, 1)
"""Vectors that are summed up together, as native/convolution.c chooses them: each strip costs two steps more."""

BY_DENSE_WEIGHT = 5e-6
"""Milliseconds for each weight, where no kernel of ours computes: a dense weight is made of the connections."""


@dataclass(frozen=True)
class Costs:
    """What each kind of work costs on a processor, in milliseconds.

    lanes: float32 numbers of a vector; 0 where convolutions compute by a dense weight.
    dense, sparse: forward under no_grad, and forward and backward, in the order of `DENSE` and `SPARSE`.
    source: of which processor, in words.
    """

    lanes: int
    dense: tuple[tuple[float, ...], tuple[float, ...]]
    sparse: tuple[tuple[float, ...], tuple[float, ...]]
    source: str

    def of_dense(self, place: Place) -> float:
        """Milliseconds of an nn.Conv*, in the better of both memory formats."""
        return float(dense_work(place) @ self.dense[place.training])

    def of_sparse(self, place: Place, nnz: int) -> float:
        """Milliseconds of a SparseConv* with `nnz` connections."""
        if not self.lanes:
            return self.of_dense(place) + BY_DENSE_WEIGHT * place.out_features * place.in_features
        return float(sparse_work(place, nnz, self.lanes) @ self.sparse[place.training])


def dense_work(place: Place) -> Numbers:
    """How much of each kind of `DENSE` there is."""
    window = place.window
    assert window is not None
    outs, ins = place.out_features // window.groups, place.in_features // window.taps
    products, weights = place.multiply_adds, place.out_features * place.in_features
    return np.array([1, products, products / max(1, ins), products / max(1, outs), place.elements, weights], float)


def sparse_work(place: Place, nnz: int, lanes: int) -> Numbers:
    """How much of each kind of `SPARSE` there is."""
    window = place.window
    assert window is not None
    if window.skips:  # what it does not read is left out
        least = place._replace(window=window.without_stride, size=window.out_size(place.size))
        skipped: Numbers = np.array([0, 0, UNPACKED * (place.elements - least.elements), 0])
        return skipped + sparse_work(least, nnz, lanes)
    steps, numbers = float(_steps(place, lanes)), float(place.elements)
    unpacked = _steps_unpacked(place, lanes)
    # As native/convolution.c chooses: to pack a number takes as long as .9 vectors, each of which is 1.25 steps.
    if unpacked and 0.8 * nnz * (unpacked - steps) < 0.9 * numbers:
        steps, numbers = unpacked, UNPACKED * numbers
    return np.array([1, nnz * lanes * steps, numbers, nnz], float)


def _steps(place: Place, lanes: int) -> int:
    """How many steps a connection takes: see native/convolution.c."""
    window = place.window
    assert window is not None
    panels, rest = divmod(place.batch, lanes)
    if 2 * rest > lanes:  # a vector has a pixel of so many images, though some are none
        return (panels + 1) * _along(place.pixels)
    sides = zip(place.size, window.padding, window.stride, strict=True)
    area = prod(-(-(length + 2 * padding) // stride) for length, padding, stride in sides)
    return panels * _along(place.pixels) + _along(rest * -(-area // lanes))  # or of so many pixels of one image


def _steps_unpacked(place: Place, lanes: int) -> float:
    """The same where images stay as they lie in memory; 0 where they cannot."""
    window = place.window
    assert window is not None
    if window.taps > 1 or max(window.stride) > 1 or any(window.padding) or place.pixels < lanes:
        return 0.0
    unaligned = 1.0 if place.pixels % lanes == 0 else 1.7 if place.training else 2.0
    return place.batch * unaligned * _along(-(-place.pixels // lanes), place.pixels // lanes)


def _along(vectors: int, widest: int = STRIPS[0]) -> int:
    """Steps along so many vectors, by strips that are no wider than `widest`."""
    return min(-(-vectors // width) * (width + 2) for width in STRIPS if width <= widest)


def fitted(work: Sequence[Numbers], times: Sequence[float]) -> tuple[float, ...]:
    """The coefficients, none below 0, with which the times come out best, each as a share of itself.

    Args:
        work: of each time, how much there is of each kind.
    """
    shares = np.stack(work) / np.asarray(times)[:, None]
    scale = np.maximum(shares.max(axis=0), np.finfo(float).tiny)
    shares /= scale  # so that none is tiny beside another
    count = shares.shape[1]
    best, least = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for kinds in map(list, combinations(range(count), size)):  # few enough to try them all
            found, *_ = np.linalg.lstsq(shares[:, kinds], np.ones(len(shares)), rcond=None)
            error = float(((shares[:, kinds] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(count), error
                best[kinds] = found
    return tuple(map(float, best / scale))
