"""What follows from how long training takes: `sparsify(..., steps=...)` and `for_steps`."""

from inspect import signature

import pytest
import torch
from torch import nn

from sparsify import GMP, SET, Evolution, GraNet, RigL, Static, coin, cosine, sparsify
from sparsify._src.evolution.evolution import OF_SPARSIFY
from sparsify.evolution import across_layers, per_layer
from tests.support.models import mlp


def pair(**options):
    torch.manual_seed(0)
    model = mlp(20, 30, 5)
    return sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.2, **options)


def train(model, optimizer, steps):
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(16, 20, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("algorithm", "steps", "whole"),
    [
        (SET(), 300, SET(interval=11, until=225)),
        (SET(), 6_000, SET(interval=200, until=4_500)),
        (SET(), 60_000, SET(interval=200, until=45_000)),
        (SET(), 1, SET(interval=1, until=1)),
        (SET(interval=7), 300, SET(interval=7, until=225)),
        (SET(until=100), 300, SET(interval=5, until=100)),
        (SET(drop_fraction=0.1), 300, SET(drop_fraction=0.1, interval=11, until=225)),
        (SET(interval=coin(0.1)), 300, SET(interval=coin(0.1), until=225)),
        (RigL(), 300, RigL(interval=11, until=225)),
        (RigL(), 60_000, RigL(interval=100, until=45_000)),
        (GMP(), 300, GMP(interval=7, until=150)),
        (GMP(begin=50), 300, GMP(interval=7, until=150, begin=50)),
        (GraNet(), 300, GraNet(interval=11, until=225)),
        (GraNet(scope=across_layers), 60_000, GraNet(interval=200, until=45_000, scope=across_layers)),
        (Evolution(scope=per_layer), 60_000, Evolution(interval=200, until=45_000, scope=per_layer)),
        (Static(), 300, Static()),
        (SET(interval=None), 300, SET(interval=None)),
    ],
    ids=repr,
)
def test_what_is_left_open_follows_from_the_steps_and_what_is_given_stays(algorithm, steps, whole):
    assert algorithm.for_steps(steps) == whole


def test_sparsify_takes_the_steps():
    model, optimizer = pair(steps=300)
    assert optimizer.evolution == SET(interval=11, until=225)
    train(model, optimizer, 300)
    assert [record.step for record in optimizer.history] == list(range(11, 226, 11))
    fractions = [record.drop_fraction for record in optimizer.history]
    assert fractions == [cosine(0.3, 225)(step) for step in range(11, 226, 11)]


@pytest.mark.parametrize("evolution", [GMP(), GraNet()], ids=repr)
@pytest.mark.parametrize("steps", [20, 330])
def test_pruning_reaches_its_target_within_the_steps(evolution, steps):
    model, optimizer = pair(evolution=evolution, steps=steps)
    assert sum(layer.nnz for layer in (model[0], model[2])) > 0.2 * 750
    train(model, optimizer, steps)
    assert sum(layer.nnz for layer in (model[0], model[2])) == round(0.2 * 750)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (SET(interval=301), "interval must be at most until and steps, .* evolution would never come"),
        (SET(interval=226), "interval must be at most until and steps, .* evolution would never come"),
        (RigL(interval=100, until=99), "interval must be at most until and steps, .* evolution would never come"),
        (GMP(until=301), "until must be at most steps, .* training would end before pruning does"),
        (GraNet(until=45_000), "until must be at most steps, .* training would end before pruning does"),
    ],
    ids=repr,
)
def test_what_could_never_come_is_refused_and_nothing_is_changed(algorithm, message):
    model = mlp(20, 30, 5)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        sparsify(model, sgd, 0.2, evolution=algorithm, steps=300)
    assert type(model[0]) is nn.Linear
    assert sgd.param_groups[0]["params"][0] is model[0].weight


@pytest.mark.parametrize("evolution", [GMP(), GraNet()], ids=repr)
def test_pruning_without_an_end_is_refused(evolution):
    with pytest.raises(ValueError, match=r"sparsify\(..., steps=...\); or when: (GMP|GraNet)\(until=...\)"):
        pair(evolution=evolution)
    assert pair(evolution=evolution, steps=10)[1].evolution.until


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GraNet(0.75), TypeError, "takes its options by name, got 0.75. They are: .*until.* optimizer steps"),
        (lambda: SET(200), TypeError, "takes its options by name, got 200"),
        (lambda: GraNet(until=0.75), TypeError, "until must be a whole number of optimizer steps, got 0.75. .*steps="),
        (lambda: RigL(until=-1), ValueError, "until must be at least 0, got -1. It is a number of optimizer steps"),
        (lambda: SET(steps=300), TypeError, r"got steps, an option of sparsify\(\)"),
        (lambda: SET(grown_values=None), TypeError, r"got grown_values, an option of sparsify\(\)"),
        (lambda: SET(zeta=0.3), TypeError, "got zeta, no option of it. Its are: interval, drop_fraction, until"),
        (
            lambda: SET(interval="often"),
            TypeError,
            'interval must be a whole number of optimizer steps, "auto", None or',
        ),
        (lambda: SET().for_steps(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: SET().for_steps(1.5), TypeError, "steps must be a whole number of optimizer steps, got 1.5"),
        (lambda: GraNet(until=10, prune_until=20), ValueError, "prune_until must be at most until"),
    ],
)
def test_mistakes_are_named_with_their_unit(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_options_of_sparsify_are_known_to_be_its():
    assert set(OF_SPARSIFY) == set(signature(sparsify).parameters) - {"model", "optimizer", "evolution"}


@pytest.mark.parametrize(("algorithm", "longest"), [(SET(), 200), (RigL(), 100)])
def test_without_an_end_evolution_comes_just_after_round_numbers_of_steps(algorithm, longest):
    assert [step for step in range(1, 1000) if algorithm.due(step)] == list(range(longest + 1, 1000, longest))


def test_without_an_end_the_drop_fraction_stays():
    assert SET().fraction(10_000) == 0.3
    assert SET(until=100).fraction(100) == 0
    assert SET(until=100, drop_fraction=0.3).fraction(100) == 0.3
