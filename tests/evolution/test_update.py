"""The pure core."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify import (
    SET,
    Evolution,
    SparseLinear,
    SparseOptimizer,
    fan_in_uniform,
    zeros,
)
from sparsify._src.evolution.update import propose_updates
from sparsify._src.vectors import generator, sample
from tests.support.views import view_of


def set_once(flat, values, shape, fraction, seed=0):
    [update] = propose_updates(SET(), [view_of(values, shape, flat, seed=seed)], [0], fraction)
    return update


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
    assert torch.equal(grown, update.grown)
    assert len(grown) == nnz - len(update.kept)
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
    assert len(full.grown) == 0


def test_grown_values():
    assert zeros(3, (4, 4), 8, generator()).tolist() == [0, 0, 0]
    values = fan_in_uniform(10_000, (50, 1000), 5000, generator(0))  # a fan-in of 100
    assert values.abs().max() <= 0.1
    assert values.std() == pytest.approx(0.1 / 3**0.5, rel=0.03)


@pytest.mark.parametrize("places", [[9, 3], [3, 3], [3, 400], [-1, 3], [3], [0, 3], [3.0, 9.0], [[3, 9]]])
def test_a_growth_rule_that_breaks_its_contract_is_refused_and_nothing_changed(places):
    def grow(layer, count):
        return torch.tensor(places)

    layer = SparseLinear(20, 20, 10 / 400)
    layer.set_topology(
        torch.tensor([0, 50, 70, 90, 110, 130, 150, 170, 190, 210]), torch.arange(1.0, 11.0).flip(0), None
    )
    before = layer.flat().clone(), layer.values.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = SparseOptimizer(optimizer, {"layer": layer}, Evolution(interval=None, drop_fraction=0.2, grow=grow))
    with pytest.raises(ValueError, match="a growth rule must"):
        optimizer.evolve()
    assert torch.equal(before[0], layer.flat())
    assert torch.equal(before[1], layer.values)


@pytest.mark.parametrize("score", [torch.ones(9), torch.ones(10, dtype=torch.int64), torch.ones(10, 1)])
def test_a_drop_rule_that_breaks_its_contract_is_refused(score):
    layer = SparseLinear(20, 20, 10 / 400)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = SparseOptimizer(optimizer, {"layer": layer}, Evolution(interval=None, drop=lambda layer: score))
    with pytest.raises(
        ValueError, match="a drop rule must give a score to each of the 10 connections of layer 'layer'"
    ):
        optimizer.evolve()
