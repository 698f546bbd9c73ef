"""Loading in place: by torch.distributed.checkpoint, and by hand into what state_dict() gives."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from sparsify import GMP, SET, RigL, SparseLinear
from sparsify._src import topology
from tests.support.comparing import assert_same
from tests.support.marks import needs_native
from tests.support.pairs import ADAM, AFRESH, SGD, X, build, everything, saved, short, train, trained

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # said of every save and load
PAIRS = [(SET(interval=3), SGD), (RigL(interval=3), SGD), (SET(interval=3), ADAM), (RigL(interval=3), ADAM)]
NAMES = ["SET, SGD", "RigL, SGD", "SET, Adam", "RigL, Adam"]
INDICES = ["crow", "col", "ccol", "csc_row", "csc_order"]
DERIVED = INDICES[2:]


def go_on_alike(one, other):
    for pair in one, other:
        train(*pair, 10, 20)
    assert_same(everything(*other), everything(*one))


@pytest.mark.parametrize(("evolution", "make"), PAIRS, ids=NAMES)
def test_plain_state_dicts_are_saved_and_loaded_in_place(evolution, make, tmp_path):
    pair = trained(evolution=evolution, make=make)
    dcp.save({"model": pair[0].state_dict(), "optimizer": pair[1].state_dict()}, checkpoint_id=tmp_path)
    other = trained(4, evolution=evolution, make=make, seed=1)  # has stepped, so that it has buffers to load into
    state = {"model": other[0].state_dict(), "optimizer": other[1].state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)
    other[0].load_state_dict(state["model"])
    other[1].load_state_dict(state["optimizer"])
    assert_same(saved(*other), saved(*pair))
    go_on_alike(pair, other)


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize(("evolution", "make"), PAIRS, ids=NAMES)
def test_torchs_own_way_resumes_bit_for_bit(evolution, make, steps, tmp_path):
    pair = trained(evolution=evolution, make=make)
    dcp.save(dict(zip(["model", "optimizer"], get_state_dict(*pair), strict=True)), checkpoint_id=tmp_path)
    other = trained(steps, evolution=evolution, make=make, seed=1)
    state = dict(zip(["model", "optimizer"], get_state_dict(*other), strict=True))
    dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(*other, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert_same(saved(*other), saved(*pair))
    go_on_alike(pair, other)


@pytest.mark.parametrize("options", [{}, {"cpu_offload": True}, {"full_state_dict": True}])
@pytest.mark.parametrize("evolution", [SET(interval=3), RigL(interval=3), GMP(until=30, interval=3)], ids=short)
def test_torchs_own_state_dicts_serve_without_files_too(evolution, options):
    pair, other = trained(evolution=evolution), build(evolution, seed=1)
    weights, state = copy.deepcopy(get_state_dict(*pair, options=StateDictOptions(**options)))
    assert state["param_groups"][0]["sparsify"]["step"] == 10
    set_state_dict(*other, model_state_dict=weights, optim_state_dict=state)
    go_on_alike(pair, other)


def test_what_evolution_needs_is_in_the_first_param_group_too_and_not_in_the_live_one():
    model, optimizer = trained()
    state = optimizer.state_dict()
    assert_same(state["param_groups"][0]["sparsify"], state["sparsify"])
    assert "sparsify" not in optimizer.param_groups[0]
    del state["sparsify"]
    again, resumed = build(seed=1)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(state))
    assert "sparsify" not in resumed.param_groups[0]
    go_on_alike((model, optimizer), (again, resumed))


@pytest.mark.parametrize("make", [SGD, ADAM])
@pytest.mark.parametrize("evolution", [SET(interval=1), RigL(interval=1), GMP(until=30, interval=1)], ids=short)
def test_the_hidden_step_is_not_counted_and_does_not_evolve(evolution, make):
    model, optimizer = build(evolution, make)
    before = everything(model)
    own = copy.deepcopy(optimizer.state_dict()["sparsify"])
    _, state = get_state_dict(model, optimizer)
    assert set(optimizer.state) == set(model.parameters())  # the step was taken
    assert_same(everything(model), before)
    assert_same(optimizer.state_dict()["sparsify"], own)
    assert state["param_groups"][0]["sparsify"]["step"] == 0
    assert not optimizer.history
    train(model, optimizer, 0, 2)
    assert [record.step for record in optimizer.history] == [1, 2]


def test_a_step_of_warm_up_at_no_rate_is_counted():
    model, optimizer = build(SET(interval=2))
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 0, 2)
    assert [record.step for record in optimizer.history] == [2]


def copy_in_place(source, target):
    for mine, theirs in zip(target.values(), source.values(), strict=True):
        mine.copy_(theirs)


def backward(model):
    model.zero_grad()
    output = model(X)
    (output - 1).square().mean().backward()
    return output.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("evolution", [SET(interval=3), RigL(interval=3)], ids=short)
def test_a_model_written_in_place_computes_and_trains_as_the_other(evolution, steps):
    (one, _), (other, optimizer) = trained(evolution=evolution), trained(steps, evolution=evolution, seed=1)
    copy_in_place(one.state_dict(), other.state_dict())
    assert_same(backward(other), backward(one))
    assert_same(everything(other), everything(one))
    values, gradient = other[0].values.detach().clone(), other[0].values.grad.clone()
    if steps:
        with pytest.warns(UserWarning, match=AFRESH):
            optimizer.step()
    else:
        optimizer.step()
    assert torch.equal(optimizer.state[other[0].values]["momentum_buffer"], gradient)
    assert torch.equal(other[0].values, torch.add(values, gradient, alpha=-0.1))
    train(other, optimizer, 11, 20)
    for layer in other[0], other[2]:
        topology.check(layer.indices(), layer.nnz, layer.shape)


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_state_that_was_loaded_with_the_model_is_kept(first):
    pair, other = trained(), trained(5, seed=1)
    weights, state = saved(*pair)
    if first == "optimizer":
        other[1].load_state_dict(state)
    copy_in_place(weights, other[0].state_dict())
    if first == "model":
        other[1].load_state_dict(state)
    go_on_alike(pair, other)  # warnings are errors


def use(model, optimizer):
    """Everything that reads the index buffers; the errors, if any."""
    errors = []
    for action in (
        lambda: backward(model),
        lambda: [layer.flat() for layer in (model[0], model[2])],
        lambda: [layer.to_dense() for layer in (model[0], model[2])],
        lambda: [layer.weight for layer in (model[0], model[2])],
        lambda: copy.deepcopy(model).state_dict(),
        optimizer.evolve,
        lambda: train(model, optimizer, 0, 3),
        lambda: backward(model),
    ):
        try:
            action()
        except (ValueError, RuntimeError) as error:
            errors.append(str(error))
    return errors


GARBAGE = {
    "fill -1": lambda index: index.fill_(-1),
    "fill 0": lambda index: index.zero_(),
    "fill large": lambda index: index.fill_(2**31 - 1),
    "random": lambda index: index.random_(),
    "random in range": lambda index: index.random_(0, 12),
    "flip": lambda index: index.copy_(index.flip(0).clone()),
    "one": lambda index: index[-1:].fill_(10**8),
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", INDICES)
def test_garbage_in_place_is_refused_or_made_anew_and_a_good_checkpoint_heals(name, kind):
    model, optimizer = trained(4, evolution=SET(interval=1))
    right, good = backward(copy.deepcopy(model)), copy.deepcopy(model.state_dict())
    GARBAGE[kind](getattr(model[0], name))
    if name in DERIVED:
        assert_same(backward(model), right)
    else:
        with pytest.raises((ValueError, RuntimeError), match=name):
            model(X)
        with pytest.raises((ValueError, RuntimeError), match=name):
            optimizer.step()
    errors = use(model, optimizer)
    assert all(any(word in error for word in (*INDICES, "indices", "gradient")) for error in errors), errors
    heals(model, optimizer, good, right)


def heals(model, optimizer, good, right):
    optimizer.state.clear()
    model.load_state_dict(good)
    assert_same(backward(model), right)
    train(model, optimizer, 0, 3)
    for layer in model[0], model[2]:
        topology.check(layer.indices(), layer.nnz, layer.shape)


def test_garbage_by_data_never_crashes():
    """In a process of its own: what comes to the worst takes this one with it."""
    code = "from tests.clients import test_distributed_checkpoint as t; t.write_by_data()"
    options = ["-X", "faulthandler", "-W", "ignore"]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def write_by_data():
    for name in INDICES:
        for change in GARBAGE.values():
            for replace in False, True:
                model, optimizer = trained(4, evolution=SET(interval=1))
                right, good = backward(copy.deepcopy(model)), copy.deepcopy(model.state_dict())
                index = getattr(model[0], name)
                if replace:
                    garbage = index.clone()
                    change(garbage)
                    index.data = garbage
                else:
                    change(index.data)
                use(model, optimizer)
                heals(model, optimizer, good, right)


@needs_native
@pytest.mark.parametrize("name", DERIVED)
@pytest.mark.parametrize("kind", ["fill 0", "flip"])
def test_derived_indices_written_by_data_do_no_silent_harm(name, kind):
    layer = SparseLinear(16, 12, 0.3)
    x = torch.randn(8, 16, requires_grad=True)
    GARBAGE[kind](getattr(layer, name).data)
    with pytest.raises(ValueError, match="indices must be a topology of the layer"):
        torch.autograd.grad(layer(x).sum(), x)
