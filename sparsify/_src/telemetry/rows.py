"""Records as flat rows, tables and scalars: the one place where the numbers that others see are chosen and named."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsify._src.checks import shown
from sparsify._src.training.optimizer import SparseOptimizer
from sparsify._src.training.record import LayerRecord, Record, Spread

if TYPE_CHECKING:
    import pandas

History = SparseOptimizer | Iterable[Record]
"""What an optimizer has gone through."""

INSTALL = "pip install 'sparsify-torch[telemetry]'"

CURVES = (
    "dropped",
    "grown",
    "connections",
    "density",
    "turnover",
    "survived",
    "explored",
    "dead_inputs",
    "dead_outputs",
)
"""What of a layer becomes a scalar each, beside the `ENDS` of its spreads."""

ENDS = ("least", "median", "most")


def rows(history: History) -> list[dict[str, Any]]:
    """One flat row for each layer and evolution: plain numbers under the names of `Record` and `LayerRecord`.

    What spreads has five: `fan_in_least`, `fan_in_lower`, `fan_in_median`, `fan_in_upper`, `fan_in_most`.

    Args:
        history: an optimizer that `sparsify` returned, its `history`, or records.
    Returns:
        rows in the order of evolutions and, in each, of layers. All have the same keys, in the same order.
    Raises:
        TypeError: `history` is anything else.
    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> [(row["step"], row["layer"], row["connections"]) for row in telemetry.rows(sgd)]
        [(0, '0', 90), (0, '2', 60)]
    """
    return [row for record in records(history) for row in rows_of(record)]


def rows_of(record: Record) -> Iterator[dict[str, Any]]:
    """One row for each layer."""
    for name, layer in record.layers.items():
        yield {"step": record.step, "layer": name, "drop_fraction": record.drop_fraction, **_flat(layer)}


def _flat(layer: LayerRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in layer._asdict().items():
        if isinstance(entry, Spread):
            found |= {f"{name}_{part}": number for part, number in entry._asdict().items()}
        else:
            found[name] = entry
    return found


def frame(history: History) -> "pandas.DataFrame":
    """The `rows` as a pandas.DataFrame.

    Args:
        history: as for `rows`.
    Raises:
        ModuleNotFoundError: pandas is not installed.
        TypeError: `history` is anything else.
    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> telemetry.frame(sgd).set_index("layer")["connections"].to_dict()
        {'0': 90, '2': 60}
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise missing("pandas", "frame(...)", error, "rows(...) gives the same as plain dicts") from error
    return pandas.DataFrame(rows(history))


def scalars(record: Record, prefix: str = "sparsify") -> dict[str, float]:
    """The numbers of a record that make curves, by names such as loggers take: `sparsify/fc1/turnover`.

    Of all layers together: `density`, `drop_fraction`, `connections`, `dropped`, `grown`, `turnover`. Of each layer
    these and `survived`, `explored`, `dead_inputs`, `dead_outputs`, and the least, the median and the most of `fan_in`,
    `fan_out` and `magnitude`, such as `fan_in_median`. `survived` is left out where nothing had grown before.

    Args:
        record: of one evolution.
        prefix: what all names begin with.
    Example:
        Weights & Biases: sparsify(..., on_evolve=lambda record: wandb.log(telemetry.scalars(record)))

        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> found = telemetry.scalars(sgd.evolve())
        >>> found["sparsify/density"], found["sparsify/0/density"], found["sparsify/0/connections"]
        (0.5, 0.45, 90.0)
    """
    if not isinstance(record, Record):
        raise TypeError(f"record must be a Record, got {shown(record)}. An optimizer has them in its history.")
    layers = record.layers
    dropped, grown = sum(record.dropped.values()), sum(record.grown.values())
    connections = sum(record.connections.values())
    found: dict[str, float] = {
        "density": record.density,
        "drop_fraction": record.drop_fraction,
        "connections": connections,
        "dropped": dropped,
        "grown": grown,
        "turnover": dropped / max(1, connections - grown + dropped),
    }
    for name, layer in layers.items():
        found |= {f"{name or '(model)'}/{what}": number for what, number in _curves(layer).items()}
    return {f"{prefix}/{name}": float(number) for name, number in found.items()}


def _curves(layer: LayerRecord) -> Mapping[str, float]:
    flat = _flat(layer)
    names = [*CURVES, *(f"{name}_{end}" for name in ("fan_in", "fan_out", "magnitude") for end in ENDS)]
    return {name: flat[name] for name in names if flat[name] is not None}


def records(history: History) -> list[Record]:
    """The records that `history` holds; TypeError where it holds anything else."""
    if isinstance(history, SparseOptimizer):
        return history.history
    found = [history] if isinstance(history, Record) else list(history) if isinstance(history, Iterable) else [history]
    if odd := [each for each in found if not isinstance(each, Record)]:
        raise TypeError(
            f"history must be an optimizer that sparsify() returned, its history, or records, got {shown(odd[0])}."
        )
    return found


def missing(package: str, user: str, error: ImportError, without: str = "") -> ModuleNotFoundError:
    """The error where an optional package is not installed."""
    hint = f" Without it {without}." if without else ""
    return ModuleNotFoundError(
        f"{package} must be installed where {user} is used, got: {error}. Install it: {INSTALL}, or pip install "
        f"{package}.{hint}",
        name=error.name,
    )
