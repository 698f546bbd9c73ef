"""Loading the checkpoint of a model: everything is checked and named before anything changes."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify import densify
from sparsify._src import topology
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.pairs import PARTS, build, everything, refuse, saved, trained
from tests.support.wrong import WRONG


def put(index, value):
    return lambda t: t.long().index_fill(0, torch.tensor([index]), value)


WRONG_INDEX = {
    "float": lambda t: t.float(),
    "int16": lambda t: t.short(),
    "negative": put(0, -1),
    "out of range": put(1, 10**6),
    "overflowing": put(1, 2**62),
    "falling": lambda t: t.flip(0),
}
CORRUPT = [
    *(("values", kind, change) for kind, change in {**WRONG, "int": lambda t: t.long()}.items()),
    *((name, kind, change) for name in ("crow", "col") for kind, change in {**WRONG, **WRONG_INDEX}.items()),
    ("crow", "not from 0", lambda t: t + 1),
    ("crow", "too low at the end", put(-1, 1)),
    ("col", "duplicates", lambda t: torch.full_like(t, 3)),
    ("col", "just out of range", put(-1, 16)),
    ("bias", "shorter", lambda t: t[:-1]),
]


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize(("name", "change"), [(n, c) for n, _, c in CORRUPT], ids=[f"{n}-{k}" for n, k, _ in CORRUPT])
def test_a_corrupt_model_checkpoint_is_refused_by_key_with_nothing_changed(layer, name, change):
    model, _ = build(seed=1)
    good = saved(*trained())[0]
    bad = {**good, f"{layer}.{name}": change(good[f"{layer}.{name}"])}
    # Where lengths differ either of the three may be the wrong one.
    refuse(lambda: model.load_state_dict(bad), RuntimeError, rf"\b{layer}\.(values|crow|col|bias)\b", model)
    model.load_state_dict(good)
    assert_same(dict(model.state_dict()), dict(good))


@pytest.mark.parametrize("name", ["values", "crow", "col"])
def test_a_layer_of_which_a_part_is_missing_is_refused(name):
    model, good = build(seed=1)[0], saved(*trained())[0]
    del good[f"2.{name}"]
    refuse(lambda: model.load_state_dict(good), RuntimeError, rf"\b2\.{name}\b", model)


def test_what_is_unusual_but_sound_loads():
    good = saved(*trained())[0]
    good["0.values"][0] = math.nan
    for part in (good, {**good, "0.col": good["0.col"].long()}, {k: v for k, v in good.items() if k[0] == "0"}):
        model, _ = build(seed=1)
        model.load_state_dict(part, strict=len(part) == len(good))
        assert torch.equal(model[0].values.isnan(), good["0.values"].isnan())
    model.load_state_dict({**good, "0.values": torch.arange(len(good["0.values"])).double()})
    assert model[0].values.tolist() == list(range(model[0].nnz))


def doubled(state):
    return {key: tensor.double() for key, tensor in state.items()}


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_mutated_model_checkpoint_is_loaded_whole_or_refused_with_nothing_changed(data):
    model, state = MUTATED[0], copy.deepcopy(MUTATED[1])
    key = data.draw(st.sampled_from(sorted(state)))
    tensor = state[key]
    place = data.draw(st.integers(0, len(tensor) - 1))
    number = data.draw(st.sampled_from([-1, 0, 1, 2, 3, 15, 16, 17, 10**6, 2**62, -(2**62)]) | st.integers(-5, 60))
    kind = data.draw(st.sampled_from(["put", "put", "swap", "cut", "twice", "sorted", "double"]))
    if kind == "put":
        state[key] = put(place, number)(tensor) if "c" in key else tensor.index_fill(0, torch.tensor([place]), number)
    else:
        moved = torch.randperm(len(tensor)) if kind == "swap" else torch.arange(len(tensor))
        moved = {"cut": moved[:place], "twice": torch.cat([moved, moved])}.get(kind, moved)
        state[key] = tensor[moved].sort().values if kind == "sorted" else tensor[moved]
        state[key] = state[key].double() if kind == "double" else state[key]
    before = everything(model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert key.split(".")[0] + "." in refusal
        assert_same(everything(model), before)
    else:
        assert_same(doubled(model.state_dict()), doubled(state))
    for layer in model[0], model[2]:
        topology.check(layer.indices(), layer.nnz, layer.shape)
        rows, columns = layer.flat() // layer.in_features, layer.flat() % layer.in_features
        assert torch.equal(layer.to_dense()[rows, columns], layer.values)
    model.load_state_dict(MUTATED[1])
    assert_same(dict(model.state_dict()), dict(MUTATED[1]))


MUTATED = build(seed=1)[0], saved(*trained())[0]

WAY_OUT = re.escape("sparsify(model, optimizer, start=state_dict)")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("theirs", "ours"), [(PARTS, 0.3), (0.3, PARTS), (PARTS, {"2": 0.3})])
def test_a_checkpoint_of_another_split_is_refused_with_the_way_out(theirs, ours, strict):
    state = saved(*trained(density=theirs))[0]
    model, optimizer = trained(seed=1, density=ours)
    refuse(lambda: model.load_state_dict(state, strict), RuntimeError, f"(?s)\\b2\\b.*{WAY_OUT}", model, optimizer)


def test_a_dense_checkpoint_says_how_much_of_it_was_left_out():
    model, _ = build(density=PARTS)
    flat, state = model[0].flat(), mlp(12, 16, 4).state_dict()
    weight = state["0.weight"].flatten()
    with pytest.warns(UserWarning, match=r"\d ?%") as warned:
        model.load_state_dict(state)
    assert len(warned) == 1
    share = 100 * (1 - weight[flat].abs().sum() / weight.abs().sum()).item()
    told = [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) ?%", str(warned[0].message))]
    assert told == [pytest.approx(share, abs=0.6)]
    assert torch.equal(model[0].flat(), flat)
    assert torch.equal(model[0].values, weight[flat])
    assert torch.equal(model[2].weight, state["2.weight"])


def test_a_densified_checkpoint_comes_back_without_a_word():
    model, _ = trained()
    before = everything(model)
    model.load_state_dict(densify(model).state_dict())
    assert_same(everything(model), before)
