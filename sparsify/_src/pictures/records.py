"""Records of evolutions: checked, and by layer."""

from collections.abc import Sequence

from sparsify._src.checks import shown
from sparsify._src.training.record import LayerRecord, Record


def checked_records(history: object) -> list[Record]:
    """`history`, which must hold records."""
    if not isinstance(history, Sequence) or not all(isinstance(record, Record) for record in history):
        raise TypeError(f"history must be a list of records, got {shown(history)}. Pass optimizer.history.")
    if not history:
        raise ValueError("history must hold the record of an evolution, got none. Draw after the first evolution.")
    return list(history)


def layers_of(records: Sequence[Record]) -> list[str]:
    """The names of all layers of a history."""
    return list(dict.fromkeys(name for record in records for name in record.layers))


def of_layer(records: Sequence[Record], name: str) -> tuple[list[int], list[LayerRecord]]:
    """The steps of the evolutions, and what the record of each tells of a layer."""
    told = [(record.step, record.layers[name]) for record in records if name in record.layers]
    if not told:
        raise ValueError(f"layer must be one of {layers_of(records)}, got {name!r}.")
    return [step for step, _ in told], [each for _, each in told]
