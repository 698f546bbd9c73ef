"""Records as curves in TensorBoard."""

import copy
import pickle
import sys

import pytest
import torch

from sparsify import SET, sparsify, telemetry
from sparsify._src.telemetry import tensorboard
from tests.support.models import mlp
from tests.support.pairs import SGD, saved, train, trained


class Writer:
    """What a SummaryWriter does, in a dict."""

    def __init__(self):
        self.found = {}

    def add_scalar(self, tag, value, step):
        self.found.setdefault(step, {})[tag] = value


def pair(board, seed=0):
    torch.manual_seed(seed)
    model = mlp(12, 16, 4)
    return sparsify(model, SGD(model.parameters()), 0.3, evolution=SET(interval=3), seed=seed, on_evolve=board)


def test_scalars_are_written_at_their_step():
    writer = Writer()
    model, optimizer = pair(telemetry.TensorBoard(writer))
    train(model, optimizer, 0, 7)
    assert writer.found == {record.step: telemetry.scalars(record) for record in optimizer.history}
    assert len(writer.found) == 2


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(history):
    found = {}
    for record in history:
        for tag, number in telemetry.scalars(record).items():
            found.setdefault(tag, []).append((record.step, pytest.approx(number, rel=1e-6)))
    return found


def test_tensorboard_reads_what_was_written_and_where_training_resumes_nothing_twice(tmp_path):
    pytest.importorskip("tensorboard")
    board = telemetry.TensorBoard(tmp_path)
    model, optimizer = pair(board)
    train(model, optimizer, 0, 7)
    state = saved(model, optimizer)
    assert curves(tmp_path) == expected(optimizer.history)  # though it is open still
    train(model, optimizer, 7, 16)
    board.close()
    resumed_board = telemetry.TensorBoard(str(tmp_path))
    model, resumed = pair(resumed_board, seed=1)
    model.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    train(model, resumed, 7, 13)
    resumed_board.close()
    assert [record.step for record in resumed.history] == [3, 6, 9, 12]
    assert curves(tmp_path) == expected(resumed.history)


def test_what_is_given_is_left_open_and_may_be_a_writer_of_tensorboards(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        board = telemetry.TensorBoard(writer)
        model, optimizer = pair(board)
        train(model, optimizer, 0, 4)
        copy.deepcopy(board)(optimizer.evolve())
        board.close()
        writer.add_scalar("mine", 1.0, 5)
    assert curves(tmp_path)["mine"] == [(5, 1.0)]
    assert len(curves(tmp_path)["sparsify/density"]) == 3


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_one_of_a_folder_is_copied_and_pickled_and_opens_it_again(again, tmp_path):
    pytest.importorskip("tensorboard")
    board, (_, optimizer) = telemetry.TensorBoard(tmp_path), trained(7)
    board(optimizer.history[0])
    other = again(board)
    board.close()
    other(optimizer.history[1])
    other.close()
    assert curves(tmp_path) == expected(optimizer.history)


@pytest.mark.parametrize("writer", [None, 3, object(), Writer])
def test_a_writer_must_be_one(writer):
    if writer is Writer:
        writer = [Writer()]
    with pytest.raises(TypeError, match="writer must be a SummaryWriter or a folder"):
        telemetry.TensorBoard(writer)


def test_without_tensorboard_an_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    model, optimizer = pair(telemetry.TensorBoard(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"tensorboard must be .* pip install 'sparsify-torch\[telemetry\]'"):
        train(model, optimizer, 0, 4)
    assert len(optimizer.history) == 1


def test_rank_0_alone_writes(monkeypatch):
    monkeypatch.setattr(tensorboard, "is_first", lambda: False)
    writer = Writer()
    model, optimizer = pair(telemetry.TensorBoard(writer))
    train(model, optimizer, 0, 4)
    assert optimizer.history
    assert not writer.found
