"""Which records a trainer's loggers have not seen yet."""

import copy
import pickle
from types import SimpleNamespace

import pytest

from sparsify import SET, sparsify
from sparsify._src.telemetry.new_records import NewRecords
from tests.support.pairs import build, saved, train, trained


def steps(new, *optimizers):
    return [(prefix, record.step) for prefix, record in new.take(optimizers)]


def test_each_record_is_taken_once():
    new, (model, optimizer) = NewRecords(), trained(7)
    new.skip([optimizer])
    assert steps(new, optimizer) == []
    train(model, optimizer, 7, 13)
    assert steps(new, optimizer) == [("sparsify", 9), ("sparsify", 12)]
    assert steps(new, optimizer) == []
    optimizer.evolve()
    assert steps(new, optimizer) == [("sparsify", 13)]


def test_of_several_optimizers_each_has_its_names():
    new, pairs = NewRecords(), [build(), build(seed=1)]
    plain = build()[1].__wrapped__
    for number, (model, optimizer) in enumerate(pairs):
        train(model, optimizer, 0, 3 * number + 3)
    optimizers = [pairs[0][1], plain, pairs[1][1]]
    assert steps(new, *optimizers) == [("sparsify-0", 3), ("sparsify-1", 3), ("sparsify-1", 6)]


def test_optimizers_are_found_in_what_a_trainer_makes_of_them():
    class Wrapped:
        param_groups = ()

        def __init__(self, optimizer):
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

        def step(self):
            self.optimizer.step()

    _, optimizer = trained(4)
    assert steps(NewRecords(), Wrapped(optimizer)) == [("sparsify", 3)]
    assert steps(NewRecords(), SimpleNamespace()) == []


def test_what_is_loaded_was_there_before_and_goes_on():
    new, (model, optimizer) = NewRecords(), trained(4)
    state = saved(model, optimizer)
    train(model, optimizer, 4, 10)
    assert len(steps(new, optimizer)) == 3
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    assert steps(new, optimizer) == []
    train(model, optimizer, 4, 7)
    assert steps(new, optimizer) == [("sparsify", 6)]


def test_a_history_that_begins_anew_is_all_new():
    new, (model, optimizer) = NewRecords(), trained(10)
    new.skip([optimizer])
    model, optimizer = sparsify(model, optimizer, evolution=SET(interval=2))
    train(model, optimizer, 0, 3)
    assert steps(new, optimizer) == [("sparsify", 2)]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_seen_nothing(again):
    new, (_, optimizer) = NewRecords(), trained(4)
    new.skip([optimizer])
    assert steps(again(new), optimizer) == [("sparsify", 3)]
