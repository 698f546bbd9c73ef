"""Records of evolutions, made by hand."""

from typing import Any, NamedTuple


class LayerRecord(NamedTuple):
    turnover: float
    survived: float | None
    explored: float
    fan_in: tuple[float, ...] = (1, 2, 3, 4, 5)
    fan_out: tuple[float, ...] = (10, 20, 30, 40, 50)


class Record(NamedTuple):
    step: int
    layers: dict[str, Any]


def history():
    """Three evolutions of two layers, of which "b" only evolves at the last two."""
    return [
        Record(10, {"a": LayerRecord(0.3, None, 0.1)}),
        Record(20, {"a": LayerRecord(0.2, 0.5, 0.15, (0, 2, 4, 6, 8)), "b": LayerRecord(0.3, None, 0.4)}),
        Record(30, {"a": LayerRecord(0.1, 0.75, 0.175), "b": LayerRecord(0.2, 0.25, 0.5)}),
    ]
