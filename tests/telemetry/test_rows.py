"""Records as rows, tables and scalars."""

import math
import sys

import pytest
import torch

from sparsify import SET, GraNet, SparseLinear, SparseOptimizer, sparsify, telemetry
from tests.support.models import mlp
from tests.support.pairs import build, train, trained

PARTS = ("least", "lower", "median", "upper", "most")
NAMES = [
    *("step", "layer", "drop_fraction", "evolved", "dropped", "grown", "connections", "density", "target", "turnover"),
    *("survived", "explored", "dead_inputs", "dead_outputs"),
    *(f"{what}_{part}" for what in ("fan_in", "fan_out", "magnitude") for part in PARTS),
]


def test_a_row_holds_the_plain_numbers_of_a_layers_record():
    _, optimizer = trained(7)
    found = telemetry.rows(optimizer)
    assert [(row["step"], row["layer"]) for row in found] == [(3, "0"), (3, "2"), (6, "0"), (6, "2")]
    assert all(list(row) == NAMES for row in found)
    assert all(type(entry) in (bool, int, float, str, type(None)) for row in found for entry in row.values())
    record = optimizer.history[1]
    layer = record.layers["2"]
    assert found[3]["drop_fraction"] == record.drop_fraction
    assert [found[3][name] for name in NAMES[3:14]] == list(layer[:11])
    assert [found[3][f"fan_out_{part}"] for part in PARTS] == list(layer.fan_out)


def test_an_optimizer_its_history_records_and_one_record_are_all_histories():
    _, optimizer = trained(7)
    found = telemetry.rows(optimizer)
    assert telemetry.rows(optimizer.history) == telemetry.rows(iter(optimizer.history)) == found
    assert telemetry.rows(optimizer.history[1:]) == telemetry.rows(optimizer.history[1]) == found[2:]
    assert telemetry.rows([]) == telemetry.rows(build()[1]) == []


@pytest.mark.parametrize("history", [None, 3, "no", [3], {"step": 1}, torch.optim.SGD([torch.zeros(1)], lr=0.1)])
def test_what_is_no_history_is_refused(history):
    with pytest.raises(TypeError, match="history must be an optimizer that sparsify"):
        telemetry.rows(history)


def test_a_frame_has_the_rows():
    pandas = pytest.importorskip("pandas")
    _, optimizer = trained(7)
    frame = telemetry.frame(optimizer)
    assert list(frame.columns) == NAMES
    assert frame["connections"].tolist() == [row["connections"] for row in telemetry.rows(optimizer)]
    assert pandas.isna(frame["survived"][0])
    assert telemetry.frame([]).empty


def test_without_pandas_an_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pandas must be .* pip install 'sparsify-torch\[telemetry\]'"):
        telemetry.frame([])


def test_scalars_are_the_numbers_that_make_curves():
    _, optimizer = trained(7)
    first, second = optimizer.history
    found, layer = telemetry.scalars(second), second.layers["0"]
    assert all(type(number) is float for number in found.values())
    assert found["sparsify/density"] == second.density
    assert found["sparsify/drop_fraction"] == second.drop_fraction
    assert found["sparsify/grown"] == found["sparsify/dropped"] == sum(second.grown.values())
    assert found["sparsify/connections"] == sum(second.connections.values())
    assert found["sparsify/turnover"] == sum(second.dropped.values()) / sum(first.connections.values())
    for name in "dropped", "grown", "connections", "density", "turnover", "survived", "explored", "dead_inputs":
        assert found[f"sparsify/0/{name}"] == getattr(layer, name)
    assert found["sparsify/2/fan_in_median"] == second.layers["2"].fan_in.median
    assert found["sparsify/2/magnitude_most"] == second.layers["2"].magnitude.most
    assert found.keys() - telemetry.scalars(first).keys() == {"sparsify/0/survived", "sparsify/2/survived"}
    assert {f"run/{name.partition('/')[2]}" for name in found} == telemetry.scalars(second, "run").keys()


def test_the_turnover_of_all_layers_counts_what_was_there_before():
    _, optimizer = trained(7, evolution=GraNet(until=30, interval=3))
    before, record = optimizer.history
    connections = sum(before.connections.values())
    assert sum(record.connections.values()) < connections
    assert telemetry.scalars(record)["sparsify/turnover"] == sum(record.dropped.values()) / connections


def test_a_model_that_is_one_layer_has_a_name():
    layer = SparseLinear(20, 10, density=0.2)
    sgd = SparseOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1), {"": layer}, SET(interval=None))
    assert telemetry.scalars(sgd.evolve())["sparsify/(model)/connections"] == 40


def test_scalars_of_what_has_diverged_are_what_they_are():
    model, optimizer = trained(4)
    with torch.no_grad():
        model[0].values.fill_(math.nan)
    assert math.isnan(telemetry.scalars(optimizer.evolve())["sparsify/0/magnitude_median"])


def test_what_is_no_record_has_no_scalars():
    with pytest.raises(TypeError, match=r"record must be a Record, got \[.*in its history"):
        telemetry.scalars(trained(4)[1].history)


def test_they_serve_as_the_line_that_logs():
    logged = []
    model = mlp(12, 16, 4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    on_evolve = lambda record: logged.append(telemetry.scalars(record))  # noqa: E731  # as a user writes it
    model, sgd = sparsify(model, sgd, 0.3, evolution=SET(interval=3), on_evolve=on_evolve)
    train(model, sgd, 0, 7)
    assert logged == [telemetry.scalars(record) for record in sgd.history]
    assert len(logged) == 2
