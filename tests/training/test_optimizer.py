import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsify import GMP, SET, Evolution, RigL, SparseLinear, SparseOptimizer, Static, coin, sparsify, trim
from tests.support.comparing import assert_same
from tests.support.models import mlp


def pair(evolution=SET(interval=3), make=torch.optim.Adam, density=0.3, **options):  # noqa: B008
    model = mlp(12, 16, 4)
    return sparsify(model, make(model.parameters(), lr=0.01), density, evolution=evolution, **options)


def backward(model, optimizer):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 12)).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, steps):
    for _ in range(steps):
        backward(model, optimizer)
        optimizer.step()


def topologies(model):
    return [module.flat().clone() for module in model.modules() if isinstance(module, SparseLinear)]


def test_it_is_the_optimizer_it_wraps():
    _, optimizer = pair()
    assert isinstance(optimizer, torch.optim.Adam)
    assert isinstance(optimizer, SparseOptimizer)
    assert type(optimizer) is not torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.01
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.__wrapped__.param_groups[0]["lr"] == 0.5
    assert "Adam" in repr(optimizer)
    assert "2 sparse layers" in repr(optimizer)
    assert str(optimizer) == repr(optimizer)


def test_evolution_comes_on_schedule_and_history_tells_what_it_did():
    model, optimizer = pair(SET(interval=3, drop_fraction=0.25, until=7))
    moments = []
    for number in range(1, 11):
        before = topologies(model)
        train(model, optimizer, 1)
        if any(not torch.equal(old, new) for old, new in zip(before, topologies(model), strict=True)):
            moments.append(number)
    assert moments == [3, 6] == [record.step for record in optimizer.history]
    record = optimizer.history[0]
    assert record.drop_fraction == 0.25
    assert record.dropped == record.grown
    assert set(record.dropped) == {"0", "2"}
    assert 0 < record.dropped["0"] <= 0.25 * model[0].nnz


def test_nnz_never_drifts():
    model, optimizer = pair(SET(interval=1, drop_fraction=0.5))
    counts = [layer.nnz for layer in (model[0], model[2])]
    train(model, optimizer, 50)
    assert [layer.nnz for layer in (model[0], model[2])] == counts
    assert len(optimizer.history) == 50


def test_the_parameter_stays_the_same_object_and_memory():
    model, optimizer = pair(SET(interval=1))
    values, pointers = model[0].values, [model[0].values.data_ptr(), model[0].col.data_ptr()]
    train(model, optimizer, 5)
    assert model[0].values is values
    assert [model[0].values.data_ptr(), model[0].col.data_ptr()] == pointers


@pytest.mark.parametrize("which", ["proxy", "original", "both"])
def test_stepping_either_object_evolves_once(which):
    model, optimizer = pair()
    original = optimizer.__wrapped__
    for number in range(6):
        backward(model, optimizer)
        (optimizer if which == "proxy" or (which == "both" and number % 2) else original).step()
    assert [record.step for record in optimizer.history] == [3, 6]


def test_static_never_evolves_and_evolve_by_hand_does():
    model, optimizer = pair(Static())
    before = topologies(model)
    train(model, optimizer, 5)
    optimizer.evolve()
    assert all(torch.equal(old, new) for old, new in zip(before, topologies(model), strict=True))
    model, optimizer = pair(SET(interval=None))
    before = topologies(model)
    train(model, optimizer, 5)
    assert optimizer.history == []
    record = optimizer.evolve()
    assert record.step == 5
    assert optimizer.history == [record]
    assert not torch.equal(before[0], model[0].flat())


def test_coin_and_callable_schedules():
    flips = coin(0.4, seed=1)
    model, optimizer = pair(SET(interval=flips, drop_fraction=lambda step: 0.5 / step))
    train(model, optimizer, 20)
    assert [record.step for record in optimizer.history] == [step for step in range(1, 21) if flips(step)]
    assert all(record.drop_fraction == 0.5 / record.step for record in optimizer.history)


def test_same_seed_same_evolution_whatever_the_global_generator_does():
    results = []
    for noise in (1, 2):
        torch.manual_seed(0)
        model, optimizer = pair(SET(interval=None), seed=5)
        train(model, optimizer, 2)
        torch.manual_seed(noise)
        optimizer.evolve()
        optimizer.evolve()
        results.append(topologies(model))
    assert_same(*results)


def test_mean_grown_state():
    model, optimizer = pair(SET(interval=None), grown_state="mean")
    train(model, optimizer, 3)
    layer = model[0]
    old = dict(zip(layer.flat().tolist(), optimizer.state[layer.values]["exp_avg_sq"].tolist(), strict=True))
    optimizer.evolve()
    now = layer.flat().tolist()
    survivors = [old[place] for place in now if place in old]
    state = optimizer.state[layer.values]
    for place, first, second in zip(now, state["exp_avg"].tolist(), state["exp_avg_sq"].tolist(), strict=True):
        if place not in old:
            assert first == 0
            assert second == pytest.approx(sum(survivors) / len(survivors), rel=1e-5)


def test_an_optimizer_of_other_state_is_refused_after_its_first_step_and_nothing_evolved():
    class Blocks(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["scales"] = torch.ones(2)

    model, optimizer = pair(SET(interval=1), make=Blocks)
    before = topologies(model)
    for act in (lambda: train(model, optimizer, 1), lambda: train(model, optimizer, 1), optimizer.evolve):
        with pytest.raises(TypeError, match="Blocks with 'scales' of shape"):
            act()
    assert_same(topologies(model), before)
    assert optimizer.history == []


def test_a_failing_rule_changes_nothing():
    def grow(layer, count):
        raise RuntimeError("no growth today")

    model, optimizer = pair(Evolution(interval=None, grow=grow))
    train(model, optimizer, 1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="no growth today"):
        optimizer.evolve()
    assert_same((model.state_dict(), optimizer.state_dict()), before)


def test_state_dict_is_ordinary_and_of_its_own_kind():
    model, optimizer = pair()
    train(model, optimizer, 4)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "sparsify"}
    with pytest.raises(ValueError, match='state_dict must hold "sparsify"'):
        optimizer.load_state_dict(optimizer.__wrapped__.state_dict())
    other, _ = sparsify(mlp(12, 4), None, 0.3)
    wrong = SparseOptimizer(torch.optim.Adam(other.parameters()), {"0": other[0]}, SET())
    with pytest.raises(ValueError, match=r"must be of \['0'\], got \['0', '2'\]"):
        wrong.load_state_dict(state)


def test_a_model_checkpoint_loaded_alone_starts_its_optimizer_state_afresh():
    model, optimizer = pair()
    train(model, optimizer, 2)
    early = copy.deepcopy(model.state_dict())
    train(model, optimizer, 2)
    steps = optimizer.state[model[0].values]["step"].item()
    model.load_state_dict(early)
    backward(model, optimizer)
    with pytest.warns(UserWarning, match="topologies of '0', '2' are not those that their optimizer state"):
        optimizer.step()
    assert steps == 4
    assert optimizer.state[model[0].values]["step"] == 1
    assert optimizer.state[model[0].bias]["step"] == 5
    model.load_state_dict(copy.deepcopy(model.state_dict()))  # the same topology: nothing to say
    train(model, optimizer, 1)
    assert optimizer.state[model[0].values]["step"] == 2


def test_training_goes_on_after_trim():
    model, optimizer = pair(SET(interval=2))
    train(model, optimizer, 3)
    trim(model, 0.3)
    nnz = model[0].nnz
    with pytest.warns(UserWarning, match="topologies of '0', '2' are not those .* it starts afresh") as seen:
        train(model, optimizer, 3)
    assert len(seen) == 1
    assert model[0].nnz == nnz
    assert len(optimizer.history) == 3


def test_made_by_hand_around_a_model_of_sparse_layers():
    model = nn.Sequential(SparseLinear(12, 16, 0.3), nn.ReLU(), SparseLinear(16, 4, 0.5))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), 0.1), layers, SET(interval=2))
    train(model, optimizer, 4)
    assert len(optimizer.history) == 2
    with pytest.raises(ValueError, match="optimizer must hold the values of every sparse layer, got none of layer '0'"):
        SparseOptimizer(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), layers, SET())


def test_a_step_that_an_exception_ended_is_not_taken_for_one_that_goes_on():
    model, optimizer = pair(SET(interval=1))
    original = optimizer.__wrapped__

    def failing():
        raise KeyError("no loss today")

    for number in range(1, 5):
        with pytest.raises(KeyError):
            (original if number % 2 else optimizer).step(failing)

        def deeper():
            backward(model, optimizer)
            (original if number % 2 else optimizer).step()  # noqa: B023

        deeper()
        assert len(optimizer.history) == number


def test_a_layer_that_the_optimizer_does_not_hold_any_more_rests():
    model = mlp(12, 16, 4)
    groups = [{"params": list(model[i].parameters())} for i in (0, 2)]
    model, optimizer = sparsify(model, torch.optim.SGD(groups, lr=0.1, momentum=0.9), 0.3, evolution=SET(interval=2))
    train(model, optimizer, 3)
    del optimizer.param_groups[0]
    before = model[0].flat().clone(), model[0].values.detach().clone()
    train(model, optimizer, 4)
    assert [set(record.grown) for record in optimizer.history] == [{"0", "2"}, {"2"}, {"2"}]
    assert_same((model[0].flat(), model[0].values.detach()), before)


@pytest.mark.parametrize("evolution", [SET(interval=2), RigL(interval=2), GMP(until=20, interval=2)])
def test_values_that_were_replaced_or_pruned_are_refused_with_nothing_changed(evolution):
    model, optimizer = pair(evolution)
    train(model, optimizer, 3)
    prune.l1_unstructured(model[0], "values", 0.3)
    before = copy.deepcopy((topologies(model), model[2].state_dict(), list(optimizer.history)))
    backward(model, optimizer)
    with pytest.raises(ValueError, match=r"values must stay the parameter that sparsify\(\) made, .* in layer '0'"):
        optimizer.evolve()
    assert_same((topologies(model), model[2].state_dict(), list(optimizer.history)), before)
    prune.remove(model[0], "values")  # puts the same parameter back
    train(model, optimizer, 3)
    assert len(optimizer.history) > len(before[2])
