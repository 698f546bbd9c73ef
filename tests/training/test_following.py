import copy
import gc
import pickle
from collections import OrderedDict, UserDict
from weakref import ref

import pytest
import torch
from torch_ema import ExponentialMovingAverage

from sparsify import GMP, SET, GraNet, RigL, Static, follow, sparsify, trim
from tests.support.averages import INTERVAL, DenseAverage, pair, step, topologies
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.shadows import Shadow, by_name, data_copy

DECAY = 0.9
EVOLUTIONS = [
    SET(interval=INTERVAL),
    RigL(interval=INTERVAL, drop_fraction=0.3),
    GMP(until=16, interval=INTERVAL),
    GraNet(until=16, interval=INTERVAL, start_density=0.8),
]


def dense(model, tensors):
    """The averages in `tensors`, in the order of the sparse layers, as dense weights of the topology of `model`."""
    found = []
    for i, values in zip((0, 2), tensors, strict=True):
        weight = torch.zeros(model[i].shape, dtype=values.dtype).flatten()
        weight[model[i].flat()] = values.detach()
        found.append(weight.view(model[i].shape))
    return found


def compare(model, tensors, twin):
    for found, mean in zip(dense(model, tensors), twin.means, strict=True):
        torch.testing.assert_close(found, mean)


def assigned(averages, model):
    for name, p in model.named_parameters():
        averages[name] = DECAY * averages[name] + (1 - DECAY) * p.data


def in_place(averages, model):
    for name, p in model.named_parameters():
        averages[name].lerp_(p.detach(), 1 - DECAY)


def by_data(averages, model):
    for name, p in model.named_parameters():
        averages[name].data = DECAY * averages[name] + (1 - DECAY) * p.data


@pytest.mark.parametrize("evolution", EVOLUTIONS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("update", [assigned, in_place, by_data])
@pytest.mark.parametrize("begun", [0, 6])
def test_averages_kept_by_name_are_those_of_the_dense_weights(evolution, update, begun):
    model, optimizer = pair(evolution)
    for number in range(begun):
        step(model, optimizer, number)
    shadow, twin = by_name(model), DenseAverage(model, DECAY)
    tensors = dict(shadow)
    follow(shadow, model)
    for number in range(begun, begun + 18):
        step(model, optimizer, number)
        update(shadow, model)
        twin.update(model)
        compare(model, [shadow["0.values"], shadow["2.values"]], twin)
    assert len(optimizer.history) >= 4
    assert (shadow["0.values"] is tensors["0.values"]) == (update is not assigned)
    data_copy(model, shadow)
    step(model, optimizer, 90)


@pytest.mark.parametrize("kind", ["dict", "OrderedDict", "UserDict", "list", "tuple", "prefixes"])
def test_the_kinds_of_mappings_and_sequences(kind):
    model, optimizer = pair()
    twin, tensors = DenseAverage(model, DECAY), by_name(model)
    if kind in ("list", "tuple"):
        averages = {"list": list, "tuple": tuple}[kind](tensors.values())
    else:
        averages = {"OrderedDict": OrderedDict, "UserDict": UserDict}.get(kind, dict)(tensors)
    follow(averages, model)
    for number in range(10):
        step(model, optimizer, number)
        in_place(tensors, model)
        twin.update(model)
    compare(model, [tensors["0.values"], tensors["2.values"]], twin)


@pytest.mark.parametrize("frozen_bias", [False, True])
def test_torch_ema(frozen_bias):
    model, optimizer = pair()
    if frozen_bias:
        model[0].bias.requires_grad_(False)
    ema, twin = (
        ExponentialMovingAverage(model.parameters(), decay=DECAY, use_num_updates=False),
        DenseAverage(model, DECAY),
    )
    follow(ema.shadow_params, model)
    places = [place for place, p in enumerate(model.parameters()) if len(p) > 16]
    for number in range(14):
        step(model, optimizer, number)
        ema.update()
        twin.update(model)
        compare(model, [ema.shadow_params[place] for place in places], twin)
    with ema.average_parameters(), torch.no_grad():
        for i, mean in zip((0, 2), twin.means, strict=True):
            torch.testing.assert_close(model[i].to_dense(), mean)
        model(torch.randn(3, 12, dtype=torch.float64))
    step(model, optimizer, 15)


def test_the_class_with_a_shadow_may_apply_and_restore_it():
    model, optimizer = pair()
    ema, twin = Shadow(model, DECAY), DenseAverage(model, DECAY)
    follow(ema.shadow, model)
    for number in range(18):
        step(model, optimizer, number)
        ema.update()
        twin.update(model)
        kept = by_name(model)
        ema.apply_shadow()
        for i, mean in zip((0, 2), twin.means, strict=True):
            torch.testing.assert_close(model[i].to_dense(), mean)
        with torch.no_grad():
            model(torch.randn(3, 12, dtype=torch.float64))
        ema.restore()
        assert_same(by_name(model), kept)


@pytest.mark.parametrize("evolution", EVOLUTIONS, ids=lambda e: type(e).__name__)
def test_a_target_network_that_is_no_copy(evolution):
    """Its values come parameter by parameter, and both have one topology, because they are made alike."""
    model, optimizer = pair(evolution)
    target, _ = pair(evolution)
    for q, p in zip(target.parameters(), model.parameters(), strict=True):
        q.data.copy_(p.data)
    follow(target, model)
    twin = DenseAverage(model, DECAY)
    for number in range(18):
        step(model, optimizer, number)
        with torch.no_grad():
            for q, p in zip(target.parameters(), model.parameters(), strict=True):
                q.mul_(DECAY).add_(p, alpha=1 - DECAY)
        twin.update(model)
        for i, mean in zip((0, 2), twin.means, strict=True):
            torch.testing.assert_close(target[i].to_dense(), mean)
    assert_same(topologies(target), topologies(model))


def test_a_target_that_gets_gradients_follows_if_it_was_said():
    model, optimizer = pair()
    target = copy.deepcopy(model)
    follow(target, model)
    for number in range(9):
        step(model, optimizer, number)
        target(torch.randn(3, 12, dtype=torch.float64)).sum().backward()
    assert_same(topologies(target), topologies(model))


def test_a_followed_target_may_load_in_between():
    model, optimizer = pair()
    target = copy.deepcopy(model)
    follow(target, model)
    for number in range(9):
        step(model, optimizer, number)
        if number == 5:
            target.load_state_dict(model.state_dict())
    assert_same(topologies(target), topologies(model))
    other, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, 0.35, seed=99)
    target.load_state_dict(other.state_dict())
    flat = topologies(model)
    with pytest.raises(RuntimeError, match=r"average must have the topology of the model that it follows.*layer '0'"):
        optimizer.evolve()
    assert_same(topologies(model), flat)


def test_trim_takes_them_along():
    model, optimizer = pair(Static())
    step(model, optimizer, 0)
    shadow = by_name(model)
    follow(shadow, model)
    expected = [model[i].to_dense().detach() for i in (0, 2)]
    trim(model, 0.3, optimizer)
    for found, before, i in zip(dense(model, [shadow["0.values"], shadow["2.values"]]), expected, (0, 2), strict=True):
        assert torch.equal(found, before * (model[i].to_dense() != 0))


def test_what_is_gone_is_forgotten_and_what_comes_back_changed_is_refused():
    model, optimizer = pair()
    shadow = by_name(model)
    follow(shadow, model)
    shadow.pop("0.values")
    for number in range(5):
        step(model, optimizer, number)
    shadow["0.values"] = torch.zeros(3)
    flat, before = topologies(model), by_name(model)
    with pytest.raises(RuntimeError, match=r"average must have one number for each of the .* layer '0', got .*float32"):
        optimizer.evolve()
    assert_same(topologies(model), flat)
    assert_same(by_name(model), before)


def test_a_model_that_loads_another_topology_leaves_them_behind_and_says_so():
    model, optimizer = pair()
    shadow = by_name(model)
    follow(shadow, model)
    other, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, 0.35, seed=99)
    model.load_state_dict(other.state_dict())
    for number in range(3):
        step(model, optimizer, number)
    with pytest.raises(RuntimeError, match=r"topology that was replaced since. Call follow\(average, model\)"):
        step(model, optimizer, 3)
    shadow.update(by_name(model))
    follow(shadow, model)
    optimizer.evolve()
    assert len(shadow["0.values"]) == model[0].nnz


def test_to_say_it_twice_is_to_say_it_once():
    model, optimizer = pair()
    shadow, twin = by_name(model), DenseAverage(model, DECAY)
    follow(shadow, model)
    follow(shadow, model)
    for number in range(10):
        step(model, optimizer, number)
        in_place(shadow, model)
        twin.update(model)
    compare(model, [shadow["0.values"], shadow["2.values"]], twin)


def test_it_keeps_neither_model_nor_averages_alive():
    model, optimizer = pair()
    shadow, target = UserDict(by_name(model)), copy.deepcopy(model)
    follow(shadow, model)
    follow(target, model)
    alive = [ref(model), ref(target), ref(shadow)]
    del model, optimizer, target, shadow
    gc.collect()
    assert [each() for each in alive] == [None] * 3


def test_pairs_are_copied_and_pickled_without_what_follows_them():
    model, optimizer = pair()
    shadow = by_name(model)
    follow(shadow, model)
    for twin, own in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        before = copy.deepcopy(shadow)
        for number in range(6):
            step(twin, own, number)
        assert_same(shadow, before)


@pytest.mark.parametrize(
    ("average", "error", "words"),
    [
        (lambda m: mlp(12, 16, 4), ValueError, "average must have the sparse layers of the model.*got \\[\\]"),
        (lambda m: sparsify(mlp(12, 8, 4), None, 0.3)[0], ValueError, "average must have the sparse layers"),
        (
            lambda m: sparsify(mlp(12, 16, 4, dtype=torch.float64), None, 0.35, seed=5)[0],
            ValueError,
            r"topology of the model, got another in layer '0'.*average.load_state_dict\(model.state_dict\(\)\)",
        ),
        (lambda m: m, ValueError, "layers of its own, got layer '0' of the model itself"),
        (lambda m: None, None, ""),
        (lambda m: m.state_dict(), ValueError, "got a state dict with indices. Pass the module"),
        (lambda m: dict(m.named_parameters()), ValueError, "tensors of its own, got the values of a sparse layer for"),
        (lambda m: {"0.bias": m[0].bias.detach()}, ValueError, "average must hold '0.values'"),
        (lambda m: {f"module.{n}": p for n, p in by_name(m).items()}, ValueError, "must hold '0.values'.*module.0"),
        (lambda m: {**by_name(m), "2.values": torch.zeros(3)}, ValueError, "one number for each .*layer '2', got"),
        (lambda m: {**by_name(m), "2.values": [1.0]}, TypeError, "average must hold tensors, got list .*layer '2'"),
        (lambda m: {**by_name(m), "2.values": m[2].col}, ValueError, "layer '2', got torch.int32"),
        (lambda m: {**by_name(m), "0.values": torch.zeros(67, device="meta")}, ValueError, "layer '0', got"),
        (lambda m: list(by_name(m).values())[:3], ValueError, "for each of the 4 parameters of the model, got 3"),
        (lambda m: m.parameters(), TypeError, "average must be a module, a mapping .* got generator"),
        (lambda m: ExponentialMovingAverage(m.parameters(), 0.9), TypeError, "got ExponentialMovingAverage. Pass what"),
        (lambda m: "shadow", TypeError, "average must be a module, a mapping"),
        (lambda m: None, TypeError, "average must be a module, a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(average, error, words):
    model, optimizer = pair()
    average = average(model)
    if error is None:
        other = pair()
        step(*other, 0)
        average, words, error = other[0], "average must not be trained itself, got one whose layer '0'", ValueError
    with pytest.raises(error, match=words):
        follow(average, model)
    for number in range(6):
        step(model, optimizer, number)


def test_a_model_without_sparse_layers_is_refused():
    with pytest.raises(ValueError, match="model must hold a sparse layer, got none"):
        follow({}, mlp(3, 4))
