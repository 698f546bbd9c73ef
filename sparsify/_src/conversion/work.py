"""What a layer does in a forward pass of an example, and how long it takes: multiply-adds and milliseconds of a row."""

import torch

from sparsify._src.conversion import speed
from sparsify._src.conversion.calls import Call, Seen
from sparsify._src.conversion.places import Place
from sparsify._src.conversion.speed import Use
from sparsify._src.topology import Shape


def multiply_adds(name: str, weights: int, seen: Seen | None) -> int | None:
    """Of a layer with so many weights; None without an example, and where it is not known what the layer computes."""
    calls = _calls(name, seen)
    return None if calls is None else weights * sum(call.uses for call in calls)


def places(name: str, shape: Shape, is_linear: bool, use: Use, seen: Seen | None) -> list[Place]:
    """At which sizes a layer of `shape` is called; none where its time is not known.

    Args:
        is_linear: of others the sizes are known from an example alone.
    """
    if seen is None:
        return [Place(use.training, *shape, use.batch)] if is_linear else []
    return [call.place(shape, use.training) for call in _calls(name, seen) or () if call.uses]


def milliseconds(
    name: str, shape: Shape, nnz: int, device: torch.device, is_linear: bool, use: Use, seen: Seen | None
) -> tuple[float | None, float | None]:
    """The time of a layer, sparse with `nnz` connections and dense; None where it is not known."""
    found = places(name, shape, is_linear, use, seen)
    if not found or not speed.is_known(device):
        return None, None
    if seen is None:
        return speed.milliseconds(shape, nnz, use), speed.dense_milliseconds(shape, use)
    sparse = sum(speed.milliseconds_at(place, nnz) for place in found)
    return sparse, sum(map(speed.dense_milliseconds_at, found))


def speed_up(
    name: str, shape: Shape, nnz: int, device: torch.device, is_linear: bool, use: Use, seen: Seen | None
) -> float | None:
    """How many times faster than dense the layer is expected to be; None where that is not known."""
    if seen is None:
        return speed.speed_up(shape, nnz, use) if is_linear and speed.is_known(device) else None
    sparse, dense = milliseconds(name, shape, nnz, device, is_linear, use, seen)
    return None if sparse is None or dense is None else dense / sparse


def _calls(name: str, seen: Seen | None) -> tuple[Call, ...] | None:
    """Those of a row; none of one that the example does not reach."""
    return None if seen is None else seen.get(name, ())
