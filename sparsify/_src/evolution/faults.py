"""What is wrong with the answers of rules, in words: which property is broken, and the way out."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsify._src.checks import described, fault_of_vector
from sparsify._src.evolution.layer_view import LayerView
from sparsify._src.vectors import common, positions


class Fault(NamedTuple):
    """What came, and what to do."""

    got: str
    way: str


def fault_of_places(places: object, layer: LayerView, count: int) -> Fault | None:
    """What is wrong with the places that a growth rule gives; None where nothing is."""
    total, device = layer.shape[0] * layer.shape[1], layer.flat.device
    if isinstance(places, Tensor) and places.dtype == torch.bool and not fault_of_vector(places, None, device):
        return Fault(described(places), "Turn a mask into places with .nonzero().squeeze(1).")
    if way := fault_of_vector(places, count, device):
        return Fault(described(places), way)
    assert isinstance(places, Tensor)
    if places.dtype != torch.int64:
        return Fault(described(places), f"Places of {places.dtype} become int64 by .long().")
    places = places.resolve_neg().contiguous()
    if not count:
        return None
    if len(falls := positions(places[1:] < places[:-1])):
        one, other = places[falls[0] : falls[0] + 2].tolist()
        return Fault(f"places that are not sorted: {one} comes before {other},", "Sort them: .sort().values.")
    if places[0] < 0 or places[-1] >= total:
        outside = int(places[0] if places[0] < 0 else places[-1])
        return Fault(f"place {outside}, which is outside 0..{total - 1},", "")
    if len(again := positions(places[1:] == places[:-1])):
        return Fault(f"place {int(places[again[0]])} twice", "Give each place once.")
    if (active := common(layer.flat, places)) is not None:
        is_dropped = not layer.survives[torch.searchsorted(layer.flat, active)]
        why = "is active already" if not is_dropped else "was active until now: what is dropped does not grow again"
        return Fault(f"place {active}, which {why},", "")
    return None


def fault_of_scores(scores: object, layer: LayerView) -> Fault | None:
    """What is wrong with the scores that a drop rule gives; None where nothing is.

    NaN is wrong only where the connection's value, and its gradient if there is one, are finite: the scores of a model
    that has diverged may be NaN.
    """
    if way := fault_of_vector(scores, len(layer.flat), layer.flat.device):
        return Fault(described(scores), way)
    assert isinstance(scores, Tensor)
    if not scores.is_floating_point():
        return Fault(described(scores), f"Scores of {scores.dtype} become floating-point by .float().")
    if not (without := scores.detach().isnan()).any():
        return None
    known = layer.values.isfinite()
    if layer.has_gradient:
        known &= layer.gradient.isfinite()  # type: ignore[union-attr]  # it is there
    if not len(first := positions(without & known)):
        return None
    value = float(layer.values[first[0]])
    return Fault(
        f"NaN for {len(first)} of them, first at position {int(first[0])} where the value is {value:g},",
        "0 / 0, inf - inf and the logarithm of a negative number are NaN.",
    )
