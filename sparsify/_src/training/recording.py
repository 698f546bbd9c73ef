"""What a record says of a layer, computed when its evolution is ready and not yet carried out."""

import math

import numpy as np
import torch
from torch import Tensor

from sparsify._src import topology
from sparsify._src.evolution.update import Update
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.training.explored import Explored
from sparsify._src.training.last_grown import LastGrown
from sparsify._src.training.record import LayerRecord, Spread

LOOKED_AT = 2**16
"""Values of a layer whose magnitudes are looked at, at most."""


@torch.no_grad()
def layer_record(
    layer: SparseMatrix,
    update: Update | None,
    grown: Tensor | None,
    target: int,
    explored: Explored,
    last_grown: LastGrown,
) -> LayerRecord:
    """The record of a layer.

    Args:
        layer: as it is before.
        update: what becomes of it; None where it rests.
        grown: the values of its new connections; None where it rests.
        target: connections in the end.
        explored: afterwards.
        last_grown: the connections that grew before this evolution.
    """
    places = math.prod(layer.shape)
    if update is None or grown is None:
        flat, dropped, new = None, 0, 0
        before = after = layer.nnz
    else:
        flat, before, after, new = update.flat, update.old_nnz, len(update.flat), len(update.grown)
        dropped = before - after + new
    inputs, outputs = _units(layer, flat)
    return LayerRecord(
        evolved=update is not None,
        dropped=dropped,
        grown=new,
        connections=after,
        density=after / places,
        target=target / places,
        turnover=dropped / max(1, before),
        survived=last_grown.survived(layer.flat() if flat is None else flat) if len(last_grown.places) else None,
        explored=explored.share,
        dead_inputs=int((inputs == 0).sum()),
        dead_outputs=int((outputs == 0).sum()),
        fan_in=spread(outputs),
        fan_out=spread(inputs),
        magnitude=spread(_magnitudes(layer, update, grown)),
    )


def _units(layer: SparseMatrix, flat: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """The connections of each input and of each output unit, of the topology `flat` or, where it is None, as it is."""
    if flat is not None:
        return topology.unit_counts(flat, layer.shape)
    indices = layer.indices()
    return np.diff(indices.ccol.cpu().numpy()), np.diff(indices.crow.cpu().numpy())


def _magnitudes(layer: SparseMatrix, update: Update | None, grown: Tensor | None) -> np.ndarray:
    """The absolute values of at most LOOKED_AT connections, at equal distances."""
    values = layer.values.detach()
    if update is None or grown is None:
        seen = values[:: _stride(len(values))]
    else:
        origin = update.origin[:: _stride(len(update.origin))]
        old, new = origin[origin < update.old_nnz], origin[origin >= update.old_nnz] - update.old_nnz
        seen = torch.cat([values[old], grown.to(values)[new]])
    return seen.abs().to(torch.promote_types(seen.dtype, torch.float32)).cpu().numpy()


def _stride(count: int) -> int:
    return max(1, -(-count // LOOKED_AT))


def spread(numbers: np.ndarray) -> Spread:
    """How numbers spread, as numpy.percentile has it; NaN where there are none, and in the place of what is NaN."""
    last = len(numbers) - 1
    if last < 0:
        return Spread(*[math.nan] * 5)
    below = [last * quarter // 4 for quarter in range(5)]
    above = [min(at + 1, last) for at in below]
    ordered = np.partition(numbers, sorted({*below, *above}))
    pairs = [(float(ordered[low]), float(ordered[high])) for low, high in zip(below, above, strict=True)]
    shares = [last * quarter % 4 / 4 for quarter in range(5)]
    return Spread(*(_between(low, high, share) for (low, high), share in zip(pairs, shares, strict=True)))


def _between(low: float, high: float, share: float) -> float:
    return low if low == high or not share else low + (high - low) * share  # of two infinities no difference is taken
