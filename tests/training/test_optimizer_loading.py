"""Loading the checkpoint of an optimizer: everything is checked and named before anything changes."""

import copy
import math

import pytest
import torch

from tests.support.pairs import ADAM, refuse, saved, trained
from tests.support.wrong import WRONG


def at(*path):
    """Change one entry of an optimizer's state dict."""

    def change(state, value):
        for part in path[:-1]:
            state = state[part]
        state[path[-1]] = value

    return change


def own_states(state):
    """Where evolution's state is kept: in the state dict, and in its first param group for torch's own tools."""
    return [held for held in (state, state["param_groups"][0]) if "sparsify" in held]


@pytest.mark.parametrize("value", [None, "no", [], -7, torch.zeros(3), torch.eye(2).to_sparse(), math.nan])
def test_hostile_entries_of_evolution_are_refused_by_name(value):
    model, optimizer = trained(make=ADAM)
    state = saved(*trained(5, make=ADAM))[1]
    for key in state["sparsify"]:
        if (key, str(value)) == ("seed", "-7"):
            continue  # a seed like any other
        hostile = copy.deepcopy(state)
        for held in own_states(hostile):
            held["sparsify"][key] = value
        refuse(lambda hostile=hostile: optimizer.load_state_dict(hostile), ValueError, f'"{key}"', model, optimizer)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("value", ["no", [], {}, 1, None])
def test_what_is_no_state_of_evolution_is_refused(value):
    model, optimizer = trained()
    refuse(lambda: optimizer.load_state_dict(value), ValueError, "state_dict must", model, optimizer)
    hostile = saved(*trained(5))[1]
    for held in own_states(hostile):
        held["sparsify"] = value
    refuse(lambda: optimizer.load_state_dict(hostile), ValueError, "sparsify", model, optimizer)


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        *((at("state", 0, "exp_avg"), value(torch.zeros(58)), "exp_avg") for value in WRONG.values()),
        *((at("state", 2, "exp_avg_sq"), value, "exp_avg_sq") for value in (torch.zeros(3), None, "no", 1.0)),
        *((at("state", 0), value, r"state") for value in (None, "no", [])),
        *((at("state"), value, r"state") for value in (None, "no", [1])),
        *((at("param_groups"), value, r"param_?\s?groups") for value in (None, "no", [], [None])),
        *((lambda s, key: s.pop(key), key, key) for key in ("state", "param_groups")),
    ],
)
def test_hostile_state_of_an_optimizer_is_refused_by_name(change, value, words):
    model, optimizer = trained(make=ADAM)
    hostile = saved(*trained(5, make=ADAM))[1]
    change(hostile, value)
    refuse(lambda: optimizer.load_state_dict(hostile), ValueError, words, model, optimizer)
