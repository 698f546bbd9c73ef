"""Pairs of a model and its optimizer that train alike, and all that they hold."""

import copy
from functools import partial

import pytest
import torch

from sparsify import GMP, SET, GraNet, RigL, sparsify
from tests.support.comparing import assert_same
from tests.support.models import mlp

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
AFRESH = "starts afresh"
PARTS = {"0": 0.3}
ALGORITHMS = [SET(interval=3), RigL(interval=3), GMP(until=30, interval=3), GraNet(until=30, interval=3)]
X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


def short(evolution):
    """Short, for the names of tests."""
    return type(evolution).__name__


def build(evolution=SET(interval=3), make=SGD, seed=0, density=0.3):  # noqa: B008
    torch.manual_seed(seed)
    model = mlp(12, 16, 4)
    return sparsify(model, make(model.parameters()), density, evolution=evolution, seed=seed)


def train(model, optimizer, first, last):
    """The steps from `first` to `last`: the same batches in every run."""
    for step in range(first, last):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def trained(steps=10, **options):
    model, optimizer = build(**options)
    train(model, optimizer, 0, steps)
    return model, optimizer


def everything(model, optimizer=None):
    """All that is held: parameters, index buffers (derived ones too), optimizer state and where evolution stands."""
    held = [dict(model.named_parameters()), dict(model.named_buffers())]
    if optimizer is not None:
        held += [optimizer.state_dict(), list(optimizer.history)]
        held += [{name: dict(optimizer.state.get(p, {})) for name, p in model.named_parameters()}]
    return copy.deepcopy(held)


def saved(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def refuse(load, error, words, model, optimizer=None):
    """`load` raises `error` in these words; nothing has changed, and the model computes what it did."""
    before, output = everything(model, optimizer), model(X)
    with pytest.raises(error, match=words):
        load()
    assert_same(everything(model, optimizer), before)
    assert torch.equal(model(X), output)
