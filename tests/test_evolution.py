"""Drop, growth, schedules, algorithms and the pure core."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify import SET, Evolution, SparseLinear, SparseOptimizer, Static, coin, fan_in_uniform, zeros
from sparsify.evolution.drop import weakest_per_sign
from sparsify.evolution.evolve import evolve
from sparsify.evolution.growth import uniformly
from sparsify.topology import generator, sample

ALL = 10**9


@pytest.mark.parametrize(
    ("values", "fraction", "dropped"),
    [
        # each sign by itself: the strong negatives stay though every positive is weaker
        ([0.1, 0.2, 0.3, 0.4, -5, -6, -7, -8], 0.5, [0.1, 0.2, -5, -6]),
        # one sign has none
        ([0.4, 0.3, 0.2, 0.1], 0.5, [0.2, 0.1]),
        ([-4, -3, -2, -1], 0.25, [-1]),
        # counts are rounded down for each sign
        ([1, 2, 3, -1, -2, -3], 0.5, [1, -1]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.3, [1, 2, 3]),
        ([1, 2], 0.3, []),
        # none and all
        ([1, -2, 3], 0.0, []),
        ([1, -2, 0, 3], 0.0, []),
        ([1, -2, 0, 3], 1.0, [1, -2, 0, 3]),
        # zeros go first, in place of the strongest that would have gone
        ([0, 1, 2, -1, -2], 0.5, [0, 1]),
        ([0, 0, 1, 2, -1, -2], 0.5, [0, 0, 1]),
        ([0, 0, 0, 0, 1, 2, -1, -2], 0.25, [0]),
        ([0, 0, 0, 0, 1, 2, -1, -2], 0.5, [0, 0, 0, 0]),
        ([-0.0, 1, 2], 0.5, [-0.0]),
        ([], 0.5, []),
    ],
)
def test_set_drops_the_weakest_of_each_sign(values, fraction, dropped):
    values = torch.tensor(values, dtype=torch.float64)
    assert sorted(values[weakest_per_sign(values, fraction, ALL)].tolist()) == sorted(dropped)


def test_among_equals_the_first_go_first():
    assert weakest_per_sign(torch.tensor([2.0, 1.0, 1.0, 1.0]), 0.5, ALL).tolist() == [1, 2]


def test_where_few_may_go_the_weakest_go_whatever_their_sign():
    values = torch.tensor([3.0, 4.0, 5.0, 6.0, -0.1, -0.2, -0.3, -0.4])
    assert values[weakest_per_sign(values, 0.5, 3)].tolist() == pytest.approx([3.0, -0.1, -0.2])
    assert weakest_per_sign(values, 0.5, 0).tolist() == []


@given(st.lists(st.floats(-1, 1, width=32), max_size=60), st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_drop_against_a_plain_reference(values, fraction):
    dropped = weakest_per_sign(torch.tensor(values, dtype=torch.float32), fraction, ALL).tolist()
    share = [int(fraction * len([v for v in values if sign(v)]) + 1e-9) for sign in SIGNS]
    assert len(dropped) == sum(share)
    zeros_dropped = sum(values[i] == 0 for i in dropped)
    assert zeros_dropped == min(values.count(0), len(dropped))
    for sign in SIGNS[1:]:
        gone = sorted(abs(values[i]) for i in dropped if sign(values[i]))
        assert gone == sorted(abs(v) for v in values if sign(v))[: len(gone)]
    if values.count(0) == 0:
        assert sum(values[i] > 0 for i in dropped) == share[1]


SIGNS = (lambda v: v == 0, lambda v: v > 0, lambda v: v < 0)


def set_once(flat, values, shape, fraction, seed=0):
    def grow(flat, shape, count):
        return uniformly(flat, shape, count, generator(seed))

    return evolve(flat, values, shape, fraction, drop=weakest_per_sign, grow=grow)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.data())
@settings(deadline=None, max_examples=200)
def test_evolve_keeps_the_count_the_order_and_the_survivors(outs, ins, fraction, data):
    total = outs * ins
    nnz = data.draw(st.integers(1, total))
    flat = sample(total, nnz, generator("flat", total, nnz))
    values = torch.randn(nnz, generator=generator("values", nnz))
    update = set_once(flat, values, (outs, ins), fraction)
    assert len(update.flat) == nnz
    assert (torch.diff(update.flat) > 0).all()
    assert set(flat[update.kept].tolist()) <= set(update.flat.tolist())
    grown = update.flat[update.origin >= nnz]
    assert len(grown) == update.grown == nnz - len(update.kept)
    assert not set(grown.tolist()) & set(flat.tolist()), "a dropped connection came back"
    by_place = dict(zip(flat.tolist(), values.tolist(), strict=True))
    moved = update.move(values, torch.full((len(grown),), 9.0))
    for place, value in zip(update.flat.tolist(), moved.tolist(), strict=True):
        assert value == by_place.get(place, 9.0)


def test_drops_only_as_many_as_can_be_grown():
    flat = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8])  # one place is free: 7
    update = set_once(flat, torch.tensor([5.0, 6, 7, 8, -4, -3, -2, -1]), (3, 3), 1.0)
    assert update.flat.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    full = set_once(torch.arange(9), torch.randn(9), (3, 3), 0.5)
    assert full.flat.tolist() == list(range(9))
    assert full.grown == 0


def test_growth_is_uniform_over_the_inactive_places():
    flat, tally = torch.tensor([0, 5, 6, 7, 13]), torch.zeros(16)
    for seed in range(4000):
        tally[uniformly(flat, (4, 4), 2, generator("growth", seed))] += 1
    assert (tally[flat] == 0).all()
    expected = 4000 * 2 / 11
    assert ((tally - expected) ** 2 / expected)[tally > 0].sum() < 31.3  # chi squared, 10 degrees, p = 0.0005


def test_grown_values():
    assert zeros(3, (4, 4), 8, generator()).tolist() == [0, 0, 0]
    values = fan_in_uniform(10_000, (50, 1000), 5000, generator(0))  # a fan-in of 100
    assert values.abs().max() <= 0.1
    assert values.std() == pytest.approx(0.1 / 3**0.5, rel=0.03)


def test_evolution_comes_at_multiples_of_interval_and_never_after_until():
    evolution = SET(interval=10, until=30)
    assert [step for step in range(1, 60) if evolution.due(step)] == [10, 20, 30]
    assert [step for step in range(1, 60) if SET(interval=20).due(step)] == [20, 40]
    assert not any(SET(interval=None).due(step) for step in range(1, 60))
    assert [step for step in range(1, 9) if SET(interval=lambda step: step in (2, 5), until=4).due(step)] == [2]
    assert not any(Static().due(step) for step in range(1, 1000))


def test_drop_fraction_may_follow_the_step():
    evolution = SET(interval=1, drop_fraction=lambda step: 1 / step)
    assert evolution.fraction(4) == 0.25
    with pytest.raises(ValueError, match=r"drop_fraction must be in \[0, 1\], got 2"):
        SET(interval=1, drop_fraction=lambda step: 2).fraction(1)


def test_coin_falls_with_its_probability_and_the_same_way_each_time():
    flips = [coin(0.05)(step) for step in range(20_000)]
    assert sum(flips) == pytest.approx(1000, abs=150)
    again = pickle.loads(pickle.dumps(coin(0.05)))
    assert flips == [again(step) for step in range(20_000)]
    assert flips != [coin(0.05, seed=1)(step) for step in range(20_000)]
    with pytest.raises(ValueError, match="probability must be in"):
        coin(5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"interval": 0}, ValueError, "interval must be at least 1, got 0"),
        ({"interval": 2.5}, TypeError, "interval must be a whole number of optimizer steps, got 2.5"),
        ({"drop_fraction": 30}, ValueError, "drop_fraction must be in"),
        ({"drop_fraction": "0.3"}, TypeError, "drop_fraction must be a number"),
        ({"until": -1}, ValueError, "until must be at least 0"),
    ],
)
def test_bad_schedules_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        SET(**arguments)


def test_a_new_algorithm_is_made_of_rules():
    def drop_first(values, drop_fraction, most):
        return torch.arange(min(most, int(drop_fraction * len(values))))

    evolution = Evolution(interval=1, drop_fraction=0.5, drop=drop_first)
    assert evolution.drop(torch.randn(4), 0.5, ALL).tolist() == [0, 1]


@pytest.mark.parametrize("places", [[9, 3], [3, 3], [3, 400], [-1, 3], [3], [0, 3], [3.0, 9.0], [[3, 9]]])
def test_a_growth_rule_that_breaks_its_contract_is_refused_and_nothing_changed(places):
    def grow(flat, shape, count, generator):
        return torch.tensor(places)

    layer = SparseLinear(20, 20, 10 / 400)
    layer.rewire(torch.tensor([0, 50, 70, 90, 110, 130, 150, 170, 190, 210]), torch.arange(1.0, 11.0).flip(0), None)
    before = layer.flat().clone(), layer.values.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = SparseOptimizer(optimizer, {"layer": layer}, Evolution(None, 0.2, grow=grow))
    with pytest.raises(ValueError, match="a growth rule must"):
        optimizer.evolve()
    assert torch.equal(before[0], layer.flat())
    assert torch.equal(before[1], layer.values)
