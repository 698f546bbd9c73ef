"""`Figures`: what was measured of layers on a processor, and what follows from it for others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparsify._src.conversion.convolution_costs import Costs
from sparsify._src.conversion.places import Place
from sparsify._src.topology import Shape

SIZES = (32, 128, 384, 1024, 2048, 4096)
"""Square layers that a grid holds."""

BATCHES = (1, 8, 32, 128, 512)
"""Rows of input that each of them gets."""

DENSITIES = (0.01, 0.1, 0.5)
"""Of the sparse ones, beside a dense one."""

Grid = npt.NDArray[np.float64]
"""Milliseconds (2: forward under no_grad, forward and backward; sizes; batches; dense and densities)."""

GRID = (2, len(SIZES), len(BATCHES), 1 + len(DENSITIES))
"""The shape of a grid."""


class Pair(NamedTuple):
    """Milliseconds of a dense layer, and of sparse ones by their connections."""

    dense: float
    sparse: Mapping[int, float]


@dataclass(frozen=True)
class Figures:
    """Times of a grid of square layers, and of layers that were measured themselves.

    In between, the logarithm of a time is linear in those of size and batch, and the time of a sparse layer linear in
    its connections. So the logarithm of a speed-up is linear too, and does not depend on how fast the machine was when
    its neighbours in the grid were measured. Beyond the grid a time grows with the batch, and with the weights.

    A convolution takes what `costs` says; where others were measured, as much more or less as it was with these.

    Args:
        grid: of square layers.
        source: where they come from, as a plan says it.
        layers: measured themselves.
        costs: of convolutions; those of another machine, as a rule.
    """

    grid: Grid
    source: str
    layers: Mapping[Place, Pair] = field(default_factory=dict)
    costs: Costs | None = None

    def dense(self, shape: Shape, batch: int, training: bool) -> float:
        """Milliseconds of an nn.Linear."""
        return self.dense_at(Place(training, *shape, batch))

    def sparse(self, shape: Shape, nnz: int, batch: int, training: bool) -> float:
        """Milliseconds of a SparseLinear with `nnz` connections."""
        return self.sparse_at(Place(training, *shape, batch), nnz)

    def dense_at(self, place: Place) -> float:
        """Milliseconds of a dense layer."""
        own = self.layers.get(place.fewer)
        return own.dense * place.batch / place.fewer.batch if own else self._dense_told(place)

    def sparse_at(self, place: Place, nnz: int) -> float:
        """Milliseconds of a sparse layer with `nnz` connections."""
        told = self._sparse_told(place, nnz)
        own = self.layers.get(place.fewer)
        if own is None or not own.sparse:
            return told
        counts = sorted(own.sparse)
        errors = [math.log(own.sparse[count] / self._sparse_told(place.fewer, count)) for count in counts]
        return told * math.exp(float(np.interp(math.log(nnz + 1), [math.log(count + 1) for count in counts], errors)))

    def told(self, has_convolutions: bool) -> str:
        """Where the times of a table come from, in words."""
        if not has_convolutions or self.costs is None or any(place.window for place in self.layers):
            return self.source
        of_costs = f"built-in figures of {self.costs.source}"
        return self.source if self.source.startswith(of_costs) else f"{self.source}; of convolutions {of_costs}"

    def _dense_told(self, place: Place) -> float:
        if place.window is None:
            return self._between(self.grid[int(place.training), :, :, 0], _size(place.shape), place.batch)
        assert self.costs is not None
        return self.costs.of_dense(place) * self._errors[0]

    def _sparse_told(self, place: Place, nnz: int) -> float:
        if place.window is None:
            return self._told(place.shape, nnz, place.batch, place.training)
        assert self.costs is not None
        return self.costs.of_sparse(place, nnz) * self._errors[1]

    @cached_property
    def _errors(self) -> tuple[float, float]:
        """How many times longer than told the convolutions took that were measured, dense and sparse: the medians."""
        if self.costs is None:
            return 1.0, 1.0
        pairs = [(place, pair) for place, pair in self.layers.items() if place.window is not None]
        dense = [pair.dense / self.costs.of_dense(place) for place, pair in pairs]
        sparse = [ms / self.costs.of_sparse(place, nnz) for place, pair in pairs for nnz, ms in pair.sparse.items()]
        return float(np.median(dense or [1.0])), float(np.median(sparse or [1.0]))

    def _told(self, shape: Shape, nnz: int, batch: int, training: bool) -> float:
        """What the grid says of a sparse linear layer."""
        density, size = nnz / (shape[0] * shape[1]), _size(shape)
        times = self.grid[int(training), :, :, 1:]
        slopes = np.diff(times, axis=-1) / np.diff(DENSITIES)
        part = int(np.searchsorted(DENSITIES[1:-1], density))
        at = times[..., part] + np.maximum(slopes[..., part], 0) * (density - DENSITIES[part])
        at = np.maximum(at, times[..., 0] / 2)
        if size <= SIZES[-1]:
            return self._between(at, size, batch)
        # What is done for a feature grows with the width, and for a connection with its square.
        empty = np.maximum(times[..., 0] - np.maximum(slopes[..., 0], 0) * DENSITIES[0], times[..., 0] / 2)
        features = self._between(np.minimum(empty, at), SIZES[-1], batch)
        wider = size / SIZES[-1]
        return features * wider + (self._between(at, SIZES[-1], batch) - features) * wider**2

    def _between(self, times: Grid, size: float, batch: int) -> float:
        """The time for a size and a batch, from those of all sizes and batches."""
        logarithms = np.log(times)
        within = [_interpolated(size, SIZES, column) for column in logarithms.T]
        beyond = 2 * max(0.0, math.log(size / SIZES[-1])) + max(0.0, math.log(batch / BATCHES[-1]))
        return math.exp(_interpolated(batch, BATCHES, within) + beyond)


def joined(before: Pair | None, now: Pair) -> Pair:
    """Both of one layer. The machine may be slower now than before; the ratio of sparse to dense is the same."""
    if before is None:
        return now
    faster = before.dense / now.dense
    return Pair(before.dense, {**before.sparse, **{nnz: ms * faster for nnz, ms in now.sparse.items()}})


def filled(grid: Grid, like: Grid) -> Grid:
    """A grid in which sizes that were not measured (NaN) are as much larger than the one before as in another grid."""
    whole = grid.copy()
    for k in range(1, len(SIZES)):
        expected = whole[:, k - 1] * like[:, k] / like[:, k - 1]
        whole[:, k] = np.where(np.isnan(whole[:, k]), expected, whole[:, k])
    return whole


def is_grid(grid: Any) -> bool:
    """Whether these are times: of this shape, finite, above zero."""
    return bool(np.shape(grid) == GRID and np.isfinite(grid).all() and (np.asarray(grid) > 0).all())


def _size(shape: Shape) -> float:
    """The width of the square layer of as many weights."""
    return math.sqrt(shape[0] * shape[1])


def _interpolated(x: float, nodes: Sequence[int], values: Any) -> float:
    return float(np.interp(math.log(x), np.log(nodes), values))
