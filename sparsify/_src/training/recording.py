"""What a record says of a layer, computed when its evolution is ready and not yet carried out."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from sparsify._src.evolution.update import Update
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.layers.new_topology import NewTopology
from sparsify._src.swap import Change
from sparsify._src.training.explored import Explored
from sparsify._src.training.last_grown import LastGrown
from sparsify._src.training.record import LayerRecord, Spread

LOOKED_AT = 2**16
"""Values of a layer whose magnitudes are looked at, at most."""


def whats_new(layers: Mapping[str, SparseMatrix], changes: Iterable[Change]) -> dict[str, NewTopology]:
    """The new topology that these changes give to each layer, where there is one."""
    new = {id(change.matrix): change for change in changes if isinstance(change, NewTopology)}
    return {name: new[id(layer)] for name, layer in layers.items() if id(layer) in new}


def layer_record(
    layer: SparseMatrix,
    update: Update | None,
    new: NewTopology | None,
    target: int,
    explored: Explored,
    last_grown: LastGrown,
) -> LayerRecord:
    """The record of a layer.

    Args:
        layer: as it is before.
        update: what becomes of it; None where it rests.
        new: its topology afterwards, where that is another one.
        target: connections in the end.
        explored: afterwards.
        last_grown: the connections that grew before this evolution.
    """
    places, before = math.prod(layer.shape), layer.nnz
    after, grown = (before, 0) if update is None else (len(update.flat), len(update.grown))
    dropped = before - after + grown
    indices, values = (layer.indices(), layer.values.detach()) if new is None else (new.indices, new.values)
    inputs, outputs = _lengths(indices.ccol), _lengths(indices.crow)
    survived = None
    if len(last_grown.places):
        survived = last_grown.survived(layer.flat() if update is None else update.flat)
    magnitudes = values[:: max(1, -(-len(values) // LOOKED_AT))].abs()
    if magnitudes.itemsize < 4:
        magnitudes = magnitudes.float()
    return LayerRecord(
        evolved=update is not None,
        dropped=dropped,
        grown=grown,
        connections=after,
        density=after / places,
        target=target / places,
        turnover=dropped / max(1, before),
        survived=survived,
        explored=explored.share,
        dead_inputs=int((inputs == 0).sum()),
        dead_outputs=int((outputs == 0).sum()),
        fan_in=spread(outputs),
        fan_out=spread(inputs),
        magnitude=spread(magnitudes.cpu().numpy()),
    )


def _lengths(begins: Tensor) -> np.ndarray:
    """How long the rows, or columns, are that begin there."""
    lengths: np.ndarray = np.diff(begins.cpu().numpy())
    return lengths


def spread(numbers: np.ndarray) -> Spread:
    """How numbers spread, as numpy.percentile has it; NaN where there are none, and in the place of what is NaN."""
    last = len(numbers) - 1
    if last < 0:
        return Spread(*[math.nan] * 5)
    below = [last * quarter // 4 for quarter in range(5)]
    above = [min(at + 1, last) for at in below]
    ordered = np.sort(numbers)  # several numbers at a time, which np.partition does for one place only
    pairs = [(float(ordered[low]), float(ordered[high])) for low, high in zip(below, above, strict=True)]
    shares = [last * quarter % 4 / 4 for quarter in range(5)]
    return Spread(*(_between(low, high, share) for (low, high), share in zip(pairs, shares, strict=True)))


def _between(low: float, high: float, share: float) -> float:
    return low if low == high or not share else low + (high - low) * share  # of two infinities no difference is taken
