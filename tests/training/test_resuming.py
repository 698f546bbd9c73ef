"""A checkpoint goes on as the live pair does, bit for bit, wherever and whenever it was saved."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from sparsify import SET, RigL, SparseLinear, SparseOptimizer, sparsify, trim
from sparsify._src.layers import overwriting
from tests.support.comparing import assert_same, snapshot
from tests.support.models import mlp
from tests.support.pairs import (
    ADAM,
    AFRESH,
    ALGORITHMS,
    PARTS,
    SGD,
    X,
    build,
    everything,
    refuse,
    saved,
    short,
    train,
    trained,
)


@pytest.mark.parametrize("density", [0.3, PARTS])
@pytest.mark.parametrize("evolution", ALGORITHMS, ids=short)
def test_a_checkpoint_alone_makes_its_model_and_goes_on(evolution, density):
    model, optimizer = trained(evolution=evolution, density=density)
    weights, state = saved(model, optimizer)
    train(model, optimizer, 10, 20)
    torch.manual_seed(7)
    dense = mlp(12, 16, 4)
    again, resumed = sparsify(dense, SGD(dense.parameters()), start=weights, evolution=evolution)
    assert [type(layer) for layer in again] == [type(layer) for layer in model]
    assert_same(saved(again, resumed)[0], weights)
    resumed.load_state_dict(state)
    train(again, resumed, 10, 20)
    assert_same(everything(again, resumed), everything(model, optimizer))


def test_without_an_optimizer_too_and_with_all_that_is_not_sparse():
    def net():
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 16, bias=False), nn.Linear(16, 4))

    model, _ = sparsify(net(), None, {"2": 0.3})
    model(X)
    weights = copy.deepcopy(model.state_dict())
    served, optimizer = sparsify(net(), None, start=weights)
    assert optimizer is None
    assert [type(layer) for layer in served] == [nn.Linear, nn.BatchNorm1d, SparseLinear, nn.Linear]
    assert_same(dict(served.state_dict()), dict(weights))
    weights["2.values"].zero_()  # copied
    assert torch.equal(served.eval()(X), model.eval()(X))


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize(
    ("change", "density", "words"),
    [
        (lambda s: {**s, "2.col": s["2.col"] + 16}, (), r"2\.col"),
        (lambda s: {**s, "2.values": None}, (), r"2\.values"),
        (lambda s: {k: v for k, v in s.items() if k != "2.crow"}, (), r"\b2\."),
        (lambda s: {k: v for k, v in s.items() if k != "2.bias"}, (), r"2\.bias"),
        (lambda s: {**s, "0.bias": s["0.bias"][:-1]}, (), r"0\.bias"),
        (lambda s: {**s, "1.crow": s["0.crow"], "1.col": s["0.col"], "1.values": s["0.values"]}, (), r"\b1\b"),
        (lambda s: trained_of(12, 18, 4), (), r"\b0\b"),
        (lambda s: mlp(12, 16, 4).state_dict(), (), "sparse"),
        (lambda s: {}, (), "sparse"),
        (lambda s: s, (0.3,), "density"),
    ],
)
def test_a_checkpoint_that_cannot_make_the_model_is_refused_with_nothing_changed(
    change, density, words, with_optimizer
):
    state = change(saved(*trained())[0])
    model = mlp(12, 16, 4)
    sgd = SGD(model.parameters())
    before = snapshot(model, sgd)
    with pytest.raises(ValueError, match=words):
        sparsify(model, sgd if with_optimizer else None, *density, start=state)
    assert_same(snapshot(model, sgd), before)


def trained_of(*sizes):
    return sparsify(mlp(*sizes), None, 0.3)[0].state_dict()


def test_a_frozen_model_is_made_of_a_checkpoint_to_serve():
    model, _ = trained()
    frozen = mlp(12, 16, 4).requires_grad_(False)
    served, _ = sparsify(frozen, None, start=model.state_dict())
    assert not any(parameter.requires_grad for parameter in served.parameters())
    assert torch.equal(served(X), model(X))


def test_what_an_interruption_has_left_does_not_come_after_what_is_loaded(monkeypatch):
    model, optimizer = trained(5)  # the next step evolves
    good = saved(*trained(4, seed=1))[0]

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(overwriting, "put_indices", fail)  # when it is carried out, and when it is carried out again
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, 5, 6)
        assert model[0].is_changing()
    model.load_state_dict(good)
    assert_same(saved(model, optimizer)[0], good)
    assert [record.step for record in optimizer.history] == [3, 6]
    with pytest.warns(UserWarning, match=AFRESH):
        train(model, optimizer, 6, 7)
    train(model, optimizer, 7, 10)


@pytest.mark.parametrize("name", ["values", "crow", "col", "csc_order"])
def test_a_good_checkpoint_heals_memory_that_was_freed(name):
    model, good = trained()[0], trained(4)[0]
    tensor = getattr(model[0], name)
    tensor.data = tensor.data.clone()  # of memory that can be freed
    tensor.untyped_storage().resize_(0)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        model(X).sum().backward()
    model.load_state_dict(good.state_dict())
    assert torch.equal(model(X), good(X))
    for net in model, good:
        net.zero_grad()
        net(X).sum().backward()
    assert torch.equal(model[0].values.grad, good[0].values.grad)


def test_trimmed_twice_first_without_the_optimizer_and_then_with_it():
    model, optimizer = trained()
    trim(model, 0.1)
    trim(model, 0.1, optimizer)
    for layer in model[0], model[2]:
        assert optimizer.state[layer.values]["momentum_buffer"].tolist() == [0.0] * layer.nnz
    train(model, optimizer, 10, 14)


def test_an_optimizer_is_not_wrapped_twice():
    model, optimizer = trained()
    sgd, before = optimizer.__wrapped__, snapshot(model, optimizer)
    for one in sgd, optimizer:
        with pytest.raises((TypeError, ValueError), match="wrapped"):
            SparseOptimizer(one, {"0": model[0], "2": model[2]}, SET(interval=2))
    assert_same(snapshot(model, sgd), before)
    train(model, optimizer, 10, 12)
    assert [record.step for record in optimizer.history] == [3, 6, 9, 12]


def other_topology(model):
    model.load_state_dict(build(seed=1)[0].state_dict())


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("change", [other_topology, lambda model: trim(model, 0.3)], ids=["load", "trim"])
@pytest.mark.parametrize("make", [SGD, ADAM])
@pytest.mark.parametrize("evolution", [SET(interval=3), RigL(interval=3)], ids=short)
def test_what_is_saved_before_the_next_step_says_what_optimizer_state_belongs_to(evolution, make, change, order):
    model, optimizer = trained(evolution=evolution, make=make)
    change(model)
    weights, state = saved(model, optimizer)
    again, resumed = build(evolution, make, seed=2)
    loads = [lambda: again.load_state_dict(weights), lambda: resumed.load_state_dict(state)]
    for load in loads if order == "model first" else reversed(loads):
        load()
    told = []
    for pair in (model, optimizer), (again, resumed):
        with pytest.warns(UserWarning, match=AFRESH) as warned:
            train(*pair, 10, 11)
        told.append([str(one.message) for one in warned])
    assert told[0] == told[1]
    for pair in (model, optimizer), (again, resumed):
        train(*pair, 11, 20)
    assert_same(everything(again, resumed), everything(model, optimizer))


def test_a_pair_saved_again_before_it_has_stepped_goes_on_like_the_live_one():
    model, optimizer = trained()
    other_topology(model)
    weights, state = saved(model, optimizer)
    for _ in range(2):
        again, resumed = build(seed=2)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        weights, state = saved(again, resumed)
    for pair in (model, optimizer), (again, resumed):
        with pytest.warns(UserWarning, match=AFRESH):
            train(*pair, 10, 11)
    assert_same(everything(again, resumed), everything(model, optimizer))


@pytest.mark.parametrize("evolution", ALGORITHMS, ids=short)
def test_an_excursion_to_the_best_weights_keeps_the_momentum(evolution):
    (model, optimizer), twin = trained(4, evolution=evolution), trained(4, evolution=evolution)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, 4, 10)
    now = copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    with torch.no_grad():
        model.eval()(X)
    model.load_state_dict(now)
    train(model.train(), optimizer, 10, 20)
    train(*twin, 4, 20)
    assert_same(everything(model, optimizer), everything(*twin))


def test_trimming_nothing_keeps_the_state():
    (model, optimizer), twin = trained(), trained()
    trim(model, 0.0)
    for pair in (model, optimizer), twin:
        train(*pair, 10, 20)
    assert_same(everything(model, optimizer), everything(*twin))


@pytest.mark.parametrize(("make", "buffers"), [(SGD, ["momentum_buffer"]), (ADAM, ["exp_avg", "exp_avg_sq"])])
def test_trimming_with_the_optimizer_moves_its_state(make, buffers):
    def by_place(layer):
        state = optimizer.state[layer.values]
        columns = [layer.flat(), layer.values, *(state[name] for name in buffers)]
        return {place: rest for place, *rest in zip(*(column.tolist() for column in columns), strict=True)}

    model, optimizer = trained(make=make)
    layers = model[0], model[2]
    before = [by_place(layer) for layer in layers]
    steps = [optimizer.state[layer.values].get("step") for layer in layers]
    assert trim(model, 0.2, optimizer) is model
    for layer, old, step in zip(layers, before, steps, strict=True):
        now = by_place(layer)
        assert 0.7 * len(old) < len(now) < len(old)
        assert now == {place: old[place] for place in now}
        assert optimizer.state[layer.values].get("step") == step
    train(model, optimizer, 10, 20)  # warnings are errors
    weights, state = saved(model, optimizer)
    again, resumed = build(make=make, seed=2)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for pair in (model, optimizer), (again, resumed):
        train(*pair, 20, 25)
    assert_same(everything(again, resumed), everything(model, optimizer))


def test_fused_optimizers_train_on_after_trimming():
    def fused(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)

    model, optimizer = trained(make=fused)
    trim(model, 0.3)
    counts = [model[0].nnz, model[2].nnz]
    with pytest.warns(UserWarning, match=AFRESH):
        train(model, optimizer, 10, 11)
    train(model, optimizer, 11, 20)
    assert [len(optimizer.state[layer.values]["momentum_buffer"]) for layer in (model[0], model[2])] == counts
    assert len(optimizer.history) == 6


@pytest.mark.parametrize("change", [other_topology, lambda model: trim(model, 0.3), lambda model: None])
def test_an_evolution_that_is_refused_has_changed_nothing(change):
    model, optimizer = trained(evolution=RigL(interval=None))
    optimizer.zero_grad()
    change(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse(optimizer.evolve, ValueError, re.escape("evolve() must follow a backward pass"), model, optimizer)
