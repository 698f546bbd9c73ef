"""Records as lines of JSON."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch

from sparsify import SET, sparsify, telemetry
from sparsify._src.telemetry import lines
from tests.support.models import mlp
from tests.support.pairs import SGD, saved, train, trained


def logged(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def logging_pair(path, seed=0):
    torch.manual_seed(seed)
    model = mlp(12, 16, 4)
    on_evolve = telemetry.Lines(path)
    return sparsify(model, SGD(model.parameters()), 0.3, evolution=SET(interval=3), seed=seed, on_evolve=on_evolve)


def test_a_history_is_written_whole(tmp_path):
    _, optimizer = trained(7)
    path = tmp_path / "evolutions.jsonl"
    path.write_text("what was there before\n")
    telemetry.write_lines(optimizer, path)
    assert logged(path) == telemetry.rows(optimizer)
    assert list(tmp_path.iterdir()) == [path]
    telemetry.write_lines([], str(path))
    assert path.read_text() == ""


def test_a_history_that_is_none_leaves_the_file(tmp_path):
    path = tmp_path / "evolutions.jsonl"
    path.write_text("mine")
    with pytest.raises(TypeError, match="history must be"):
        telemetry.write_lines("no", path)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_has_not_is_null(tmp_path):
    model, optimizer = trained(4)
    with torch.no_grad():
        model[0].values[::2] = math.nan
        model[2].values[0] = math.inf
    optimizer.evolve()
    telemetry.write_lines(optimizer, tmp_path / "evolutions.jsonl")
    last = logged(tmp_path / "evolutions.jsonl")[-2:]
    assert [row["magnitude_most"] for row in last] == [None, None]
    assert last[0]["magnitude_least"] == 0


def test_lines_are_appended_as_training_goes_on(tmp_path):
    path = tmp_path / "new" / "evolutions.jsonl"
    model, optimizer = logging_pair(path)
    assert not path.exists()
    for step in range(10):
        train(model, optimizer, step, step + 1)
        assert (logged(path) if path.exists() else []) == telemetry.rows(optimizer)
    assert len(logged(path)) == 6


def test_a_resumed_training_has_no_evolution_twice(tmp_path):
    path = tmp_path / "evolutions.jsonl"
    straight, optimizer = logging_pair(path)
    train(straight, optimizer, 0, 7)
    state = saved(straight, optimizer)
    train(straight, optimizer, 7, 13)
    text = path.read_text()
    with path.open("a") as file:
        file.write('{"step": 15, "lay')  # the training is killed
    model, resumed = logging_pair(path, seed=1)
    model.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    train(model, resumed, 7, 9)
    assert [row["step"] for row in logged(path)] == [3, 3, 6, 6, 9, 9]
    train(model, resumed, 9, 13)
    assert path.read_text() == text
    assert logged(path) == telemetry.rows(resumed)


def test_two_evolutions_at_one_step_are_both_there(tmp_path):
    path = tmp_path / "evolutions.jsonl"
    model, optimizer = logging_pair(path)
    train(model, optimizer, 0, 3)
    optimizer.evolve()
    assert [row["step"] for row in logged(path)] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "text", ["my diary\n", '{"loss": 1}\n', '{"step": "3"}\n', "[1]\n", '{"step": 1}\nno\n{"step": 2}\n']
)
def test_a_file_of_something_else_is_left_alone(text, tmp_path):
    path = tmp_path / "diary.txt"
    path.write_text(text)
    model, optimizer = logging_pair(path)
    with pytest.raises(ValueError, match=r"path must be a new file, or one that Lines has written.*Give another path"):
        train(model, optimizer, 0, 3)
    assert path.read_text() == text
    assert len(optimizer.history) == 1


@pytest.mark.parametrize("path", [None, 3, ["a"]])
def test_a_path_must_be_one(path):
    with pytest.raises(TypeError, match="path must be that of a file"):
        telemetry.Lines(path)


def test_rank_0_alone_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "is_first", lambda: False)
    model, optimizer = logging_pair(tmp_path / "evolutions.jsonl")
    train(model, optimizer, 0, 4)
    assert optimizer.history
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_lines_are_copied_and_pickled(again, tmp_path):
    log, (_, optimizer) = telemetry.Lines(tmp_path / "evolutions.jsonl"), trained(7)
    log(optimizer.history[0])
    other = again(log)
    assert repr(other) == repr(log)
    assert other.path == Path(tmp_path / "evolutions.jsonl")
    other(optimizer.history[1])
    assert logged(log.path) == telemetry.rows(optimizer)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, (_, optimizer) = tmp_path / "evolutions.jsonl", trained(7)
    telemetry.write_lines(optimizer.history[:1], path)
    before = path.read_text()

    def failing(row):
        raise OSError("no space left")

    monkeypatch.setattr(lines, "_line", failing)
    with pytest.raises(OSError, match="no space left"):
        telemetry.write_lines(optimizer, path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
