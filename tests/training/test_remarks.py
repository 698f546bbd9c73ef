"""What a user is told who saves, makes dense or evaluates a model whose topology still changes."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch

from sparsify import GMP, SET, GraNet, Record, RigL, Static, densify, sparsify, trim
from tests.support.models import mlp

pytestmark = pytest.mark.filterwarnings("error")


def pair(evolution, density=0.2, **options):
    torch.manual_seed(0)
    model = mlp(20, 30, 5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return sparsify(model, sgd, density, evolution=evolution, **options)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 20)).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model):
    return model(torch.zeros(2, 20))


def quietly(work, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return work(*args)


@pytest.mark.parametrize("evolution", [GMP(until=100, interval=1), GraNet(until=100, interval=1)], ids=repr)
def test_saving_what_is_still_pruned_is_warned_of_once(evolution):
    model, optimizer = pair(evolution)
    train(model, optimizer, 2)
    step = 100 if type(evolution) is GMP else 66
    now = optimizer.history[-1].density
    with pytest.warns(
        UserWarning, match=rf"saved is still being pruned: density {now:.3g} now, 0.2 at step {step}"
    ) as seen:
        model.state_dict()
    assert seen[0].filename == __file__
    quietly(model.state_dict)
    quietly(optimizer.state_dict)
    with pytest.warns(UserWarning, match="made dense is still being pruned"):
        densify(model)
    train(model, optimizer, 98)
    quietly(densify, model)
    quietly(model.state_dict)


def test_who_saves_before_the_end_of_pruning_is_told_what_can_be_compared():
    model, optimizer = pair(GMP(interval=1), steps=40)
    train(model, optimizer, 2)
    with pytest.warns(UserWarning, match=r"To keep the best model, compare those after step 20\."):
        model.state_dict()


def reset(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


@pytest.mark.parametrize("evolution", [SET(), RigL(), GMP()], ids=repr)
def test_a_reset_after_the_last_evolution_is_warned_of_where_training_goes_on(evolution):
    model, optimizer = pair(evolution, steps=20)
    train(model, optimizer, 20)
    reset(model)
    with pytest.warns(UserWarning, match=r"^All sparse layers were reset.* has ended, .*steps="):
        train(model, optimizer, 1)
    train(model, optimizer, 1)  # once
    reset(model)
    model, optimizer = sparsify(model, optimizer, steps=20, evolution=SET())
    train(model, optimizer, 20)
    assert optimizer.history


def test_a_reset_of_one_layer_or_before_the_last_evolution_is_nobodys_mistake():
    model, optimizer = pair(SET(), steps=20)
    reset(model)
    train(model, optimizer, 10)
    reset(model)
    train(model, optimizer, 10)
    model[0].reset_parameters()
    train(model, optimizer, 1)


@pytest.mark.parametrize("evolution", [SET(interval=1, until=100), RigL(interval=1, until=100), Static()], ids=repr)
def test_what_keeps_its_density_is_saved_without_a_word(evolution):
    model, optimizer = pair(evolution)
    train(model, optimizer, 2)
    quietly(model.state_dict)
    quietly(densify, model)


def test_an_evaluation_right_after_an_evolution_without_an_end_is_warned_of_once():
    model, optimizer = pair(SET(interval=4))
    train(model, optimizer, 4)
    with pytest.warns(UserWarning, match=r"right after an evolution, in which 30% .* steps=") as seen:
        evaluate(model)
    assert seen[0].filename == __file__
    quietly(evaluate, model)
    train(model, optimizer, 4)
    quietly(evaluate, model)


@pytest.mark.parametrize(("steps", "says"), [(1, "one step after"), (2, "2 steps after"), (3, None)])
def test_it_is_said_as_long_as_it_matters(steps, says):
    model, optimizer = pair(SET(interval=10))
    train(model, optimizer, 10 + steps)
    if says is None:
        quietly(evaluate, model)
    else:
        with pytest.warns(UserWarning, match=f"evaluated {says} an evolution"):
            evaluate(model.eval())


def test_evaluations_that_are_as_they_should_be_are_silent():
    for evolution in SET(), SET(interval=4, until=4), SET(interval=4, drop_fraction=0.0), SET(interval=None), Static():
        model, optimizer = pair(evolution)
        train(model, optimizer, 4)
        optimizer.evolve()
        quietly(evaluate, model)
    model, optimizer = pair(SET(interval=4))
    train(model, optimizer, 4)
    quietly(model, torch.zeros(2, 20))  # in training
    model, optimizer = pair(SET(), steps=8)
    train(model, optimizer, 8)
    quietly(evaluate, model)


def test_an_optimizer_tells_what_it_does_and_how_far_it_is():
    model, optimizer = pair(GraNet(), steps=300)
    assert repr(optimizer).endswith(
        "\nGraNet(interval=11, until=225) of 2 sparse layers: 0 evolutions in 0 steps, density 0.5 now, 0.2 at step 150"
    )
    train(model, optimizer, 300)
    assert repr(optimizer).endswith("21 evolutions in 300 steps, density 0.2")
    assert repr(copy.deepcopy((model, optimizer))[1]) == repr(optimizer)
    assert repr(pickle.loads(pickle.dumps((model, optimizer)))[1]) == repr(optimizer)


def test_what_goes_on_by_another_algorithm_is_remarked_on_by_that():
    model, optimizer = pair(GMP(until=100, interval=1))
    train(model, optimizer, 2)
    model, optimizer = sparsify(model, optimizer, evolution=SET(interval=10, until=20))
    quietly(model.state_dict)
    assert "SET(interval=10, until=20) of 2 sparse layers: 0 evolutions" in repr(optimizer)


def test_each_evolution_is_told_of_when_it_is_over():
    told = []
    model, optimizer = pair(SET(interval=3, until=7), on_evolve=told.append)
    train(model, optimizer, 9)
    told.append(optimizer.evolve())
    assert told[:2] == optimizer.history[:2]
    assert told[2] is told[3] is optimizer.history[2]
    first = told[0]
    assert isinstance(first, Record)
    assert first.connections == {"0": model[0].nnz, "2": model[2].nnz}
    assert first.density == pytest.approx(0.2)
    assert first.dropped == first.grown


def test_what_is_told_may_raise_and_all_is_whole():
    def stop(record):
        raise KeyError(record.step)

    model, optimizer = pair(RigL(interval=3, until=7), on_evolve=stop)
    with pytest.raises(KeyError, match="3"):
        train(model, optimizer, 9)
    assert len(optimizer.history) == 1
    with pytest.raises(KeyError, match="6"):
        train(model, optimizer, 9)
    train(model, optimizer, 9)
    assert [record.step for record in optimizer.history] == [3, 6]


def test_what_is_called_stays_behind_when_pickled():
    model, optimizer = pair(SET(interval=1, until=7), on_evolve=lambda record: 1 / 0)
    again, copied = pickle.loads(pickle.dumps((model, optimizer)))
    train(again, copied, 2)
    assert len(copied.history) == 2


def test_bad_callbacks_are_refused():
    with pytest.raises(TypeError, match="on_evolve must be a function of a Record, got 'print'"):
        pair(SET(), on_evolve="print")


def test_records_tell_connections_as_pruning_goes():
    model, optimizer = pair(GMP(until=20, interval=4))
    train(model, optimizer, 20)
    assert [sum(record.connections.values()) for record in optimizer.history][-1] == 150
    assert all(before.density > after.density for before, after in pairwise(optimizer.history))
    trim(model, 0.5, optimizer)
    assert optimizer.history[-1].density == pytest.approx(0.2)


@pytest.mark.parametrize(("given", "value"), [("zero", 0.0), (lambda count, *_: torch.full((count,), 7.0), 7.0)])
def test_grown_values_are_chosen_in_the_one_line(given, value):
    model, optimizer = pair(SET(interval=None), grown_values=given)
    before = set(model[0].flat().tolist())
    train(model, optimizer, 1)
    optimizer.evolve()
    grown = torch.tensor([place not in before for place in model[0].flat().tolist()])
    assert grown.any()
    assert (model[0].values.detach()[grown] == value).all()


def test_grown_values_as_the_first_ones():
    model, optimizer = pair(SET(interval=None), grown_values="fan_in_uniform")
    train(model, optimizer, 1)
    optimizer.evolve()
    assert (model[0].values != 0).all()


def test_grown_state_may_be_a_function():
    asked = []

    def twice_the_mean(name, survivors, count):
        asked.append((name, count))
        return (2 * survivors.mean()).expand(count)

    model, optimizer = pair(SET(interval=None), grown_state=twice_the_mean)
    before = set(model[0].flat().tolist())
    train(model, optimizer, 2)
    record = optimizer.evolve()
    assert asked == [("momentum_buffer", record.grown[name]) for name in ("0", "2")]
    grown = torch.tensor([place not in before for place in model[0].flat().tolist()])
    momentum = optimizer.state[model[0].values]["momentum_buffer"]
    assert momentum[grown].unique().numel() == 1
    assert momentum[grown][0] == 2 * momentum[~grown].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grown_values": "one"}, 'grown_values must be "zero", "fan_in_uniform" or a function .*, got \'one\''),
        ({"grown_values": 0.0}, 'grown_values must be "zero", "fan_in_uniform" or a function .*, got 0.0'),
        ({"grown_values": lambda count: None}, r"grown_values must take \(count, shape, nnz, generator\)"),
        ({"grown_state": "ones"}, 'grown_state must be "zero", "mean" or a function, got \'ones\''),
    ],
)
def test_what_new_connections_start_from_must_be_known(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pair(SET(), **options)


def test_a_grown_state_of_another_length_is_refused_and_nothing_changes():
    model, optimizer = pair(SET(interval=None), grown_state=lambda name, survivors, count: survivors)
    train(model, optimizer, 2)
    before = model[0].flat()
    with pytest.raises(ValueError, match=r"grown_state must give .* got .* for the buffer 'momentum_buffer'"):
        optimizer.evolve()
    assert torch.equal(model[0].flat(), before)


def test_a_training_much_longer_than_was_said_is_told_of_once():
    model, optimizer = pair(SET(), steps=10)
    quietly(train, model, optimizer, 20)
    with pytest.warns(UserWarning, match=r"twice the 10 steps .* It counts optimizer steps, not epochs"):
        train(model, optimizer, 1)
    quietly(train, model, optimizer, 30)


def test_an_optimizer_made_before_trains_nothing_and_it_is_said():
    torch.manual_seed(0)
    model = mlp(20, 30, 5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    model, _ = sparsify(model, None, 0.2)
    quietly(evaluate, model)
    with pytest.warns(UserWarning, match="Something still holds the dense weights of '0', '2'"):
        train(model, sgd, 1)
    quietly(train, model, sgd, 1)


def test_a_model_made_sparse_before_its_optimizer_trains_without_a_word():
    torch.manual_seed(0)
    model, _ = sparsify(mlp(20, 30, 5), density=0.2)
    quietly(train, model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
