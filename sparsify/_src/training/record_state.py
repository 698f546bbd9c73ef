"""Records in a checkpoint: as plain numbers, checked entry by entry, and loaded."""

from collections.abc import Mapping
from typing import Any

from sparsify._src.topology import Shape
from sparsify._src.training.record import LayerRecord, Record, Spread
from sparsify._src.training.saved import check_count, refused

SHARES = ("density", "target", "turnover", "explored")
SPREADS = ("fan_in", "fan_out", "magnitude")


def plain(record: Record) -> dict[str, Any]:
    """A record as dicts, tuples and numbers."""
    layers = {
        name: {key: tuple(entry) if isinstance(entry, Spread) else entry for key, entry in layer._asdict().items()}
        for name, layer in record.layers.items()
    }
    return {**record._asdict(), "layers": layers}


def loaded(record: Mapping[str, Any]) -> Record:
    """What `plain` gave; it must have passed `check_history`."""
    layers = {
        name: LayerRecord(**{**layer, **{key: Spread(*layer[key]) for key in SPREADS}})
        for name, layer in record["layers"].items()
    }
    return Record(**{**record, "layers": layers})


def check_history(key: str, history: object, evolutions: int, now: int, shapes: Mapping[str, Shape]) -> None:
    """Raise ValueError unless `history` is of plain records of layers of these shapes.

    Args:
        key: of the history, which errors name.
        evolutions: how many there must be.
        now: the step that none comes after.
    """
    if not isinstance(history, (tuple, list)):
        raise refused(key, "must be a tuple or a list", history)
    if len(history) != evolutions:
        raise refused(key, f'must have {evolutions} records ("evolutions")', len(history))
    before = 0
    for number, record in enumerate(history):
        _check_record(f"{key}[{number}]", record, before, now, shapes)
        before = record["step"]


def _check_record(key: str, record: object, before: int, now: int, shapes: Mapping[str, Shape]) -> None:
    entries = _dict_of(key, record, Record._fields)
    step = entries["step"]
    if type(step) is not int or not before <= step <= now:
        rule = f"must be a whole number in [{before}, {now}], never less than the one before"
        raise refused(f'{key}["step"]', rule, step)
    fraction, density = entries["drop_fraction"], entries["density"]
    if type(fraction) not in (int, float) or not 0 <= fraction <= 1:
        raise refused(f'{key}["drop_fraction"]', "must be a number in [0, 1]", fraction)
    _check_share(f'{key}["density"]', density)
    layers = entries["layers"]
    if not isinstance(layers, dict) or set(layers) != set(shapes):
        got = list(layers) if isinstance(layers, dict) else layers
        raise refused(f'{key}["layers"]', f"must be of the sparse layers {list(shapes)}", got)
    for name, layer in layers.items():
        _check_layer(f'{key}["layers"]["{name}"]', layer, shapes[name])


def _check_layer(key: str, layer: object, shape: Shape) -> None:
    entries = _dict_of(key, layer, LayerRecord._fields)
    if type(entries["evolved"]) is not bool:
        raise refused(f'{key}["evolved"]', "must be True or False", entries["evolved"])
    outputs, inputs = shape
    counts = dict.fromkeys(("dropped", "grown", "connections"), outputs * inputs)
    for name, most in {**counts, "dead_inputs": inputs, "dead_outputs": outputs}.items():
        check_count(f'{key}["{name}"]', entries[name], most)
    for name in SHARES:
        _check_share(f'{key}["{name}"]', entries[name])
    if entries["survived"] is not None:
        _check_share(f'{key}["survived"]', entries["survived"], "must be None or a number in [0, 1]")
    for name, most in ("fan_in", inputs), ("fan_out", outputs):
        rule = f"must be five numbers in [0, {most}] that never fall"
        numbers = _five(f'{key}["{name}"]', entries[name], rule)
        if not 0 <= numbers[0] <= numbers[1] <= numbers[2] <= numbers[3] <= numbers[4] <= most:
            raise refused(f'{key}["{name}"]', rule, numbers)
    rule = "must be five numbers that are not negative"
    numbers = _five(f'{key}["magnitude"]', entries["magnitude"], rule)
    if any(number < 0 for number in numbers):  # NaN and infinity are left where training has diverged
        raise refused(f'{key}["magnitude"]', rule, numbers)


def _dict_of(key: str, entries: object, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entries, dict) or set(entries) != set(names):
        raise refused(key, f"must be a dict of {list(names)}", list(entries) if isinstance(entries, dict) else entries)
    return entries


def _check_share(key: str, share: object, rule: str = "must be a number in [0, 1]") -> None:
    if type(share) is not float or not 0 <= share <= 1:
        raise refused(key, rule, share)


def _five(key: str, numbers: object, rule: str) -> tuple[Any, ...]:
    if (
        not isinstance(numbers, (tuple, list))
        or len(numbers) != 5
        or any(type(number) is not float for number in numbers)
    ):
        raise refused(key, rule, numbers)
    return tuple(numbers)
