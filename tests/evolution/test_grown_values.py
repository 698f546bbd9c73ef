"""What growth rules and initial values of the user's give is checked, alike on the compiled path and the plain one."""

import re

import numpy as np
import pytest
import torch

from sparsify import Evolution
from sparsify._src.evolution.update import checked_grown_values, propose_updates
from sparsify.evolution import feeding_units, mixed, uniformly
from tests.support.views import Other, emptied, path, positions, refused, view_of  # noqa: F401

NO_PLACES = {
    "None": None,
    "[3, 9]": [3, 9],
    "array([3, 9])": np.array([3, 9]),
    "torch.int64 (1,) on cpu": positions(3),
    "torch.int64 (3,) on cpu": positions(3, 9, 10),
    "torch.int32 (2,) on cpu": positions(3, 9, dtype=torch.int32),
    "torch.float32 (2,) on cpu": positions(3, 9, dtype=torch.float32),
    "torch.int64 (1, 2) on cpu": positions(3, 9)[None],
    "torch.int64 (2,) on meta": positions(3, 9).to("meta"),
    "torch.sparse_coo torch.int64 (2,) on cpu": positions(3, 9).to_sparse(),
    "Other torch.int64 (2,) on cpu": positions(3, 9).as_subclass(Other),
    "torch.int64 (2,) on cpu": emptied(2, torch.int64),
    "places that are not sorted: 9 comes before 3,": positions(9, 3),
    "place 3 twice": positions(3, 3),
    "place 400, which is outside 0..399,": positions(3, 400),
    "place -1, which is outside 0..399,": positions(-1, 3),
    "place 50, which is active already,": positions(3, 50),
    "place 210, which was active until now: what is dropped does not grow again,": positions(3, 210),  # it is weakest
}


@pytest.mark.parametrize("got", NO_PLACES)
def test_places_must_be_sorted_unique_and_inactive(got):
    def mine(layer, count):
        return NO_PLACES[got]

    def message(count=2):
        return (
            f"a growth rule must give {count} sorted, unique, inactive places of range(400) as int64 on cpu, got "
            f"{got.strip()} from mine in layer 'fc'. Places are row * in_features + col, outside layer.flat."
        )

    refused(message(), grow=mine)
    refused(message(), grow=mixed(mine, uniformly, share=1.0))
    refused(message(), grow=mixed(uniformly, mine, share=0.0))


def test_places_of_a_rule_within_another_must_be_inactive_for_both():
    def mine(layer, count):
        return torch.arange(400)[~torch.isin(torch.arange(400), layer.flat)][:count]

    layer = view_of(torch.ones(10), (20, 20), range(10))
    [update] = propose_updates(Evolution(interval=None, grow=mixed(mine, mine, share=0.5)), [layer], [0], 0.4)
    assert update.grown.tolist() == [10, 11, 12, 13]
    [update] = propose_updates(
        Evolution(interval=None, grow=feeding_units(mine)), [view_of(torch.ones(10), (2, 20), range(10))], [0], 0.4
    )
    assert len(update.grown) == 4
    same = positions(30, 31)
    with pytest.raises(ValueError, match="got place 30, which is active already, from <lambda> in layer 'layer'"):
        propose_updates(
            Evolution(interval=None, grow=mixed(lambda *_: same, lambda *_: same, share=0.5)), [layer], [0], 0.4
        )


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (None, "None"),
        ([0.0, 0.0], "[0.0, 0.0]"),
        (np.zeros(2), "array([0., 0.])"),
        (0.0, "0.0"),
        (torch.zeros(()), "torch.float32 () on cpu"),
        (torch.zeros(1), "torch.float32 (1,) on cpu"),
        (torch.zeros(2, 1), "torch.float32 (2, 1) on cpu"),
        (torch.zeros(2, dtype=torch.int64), "torch.int64 (2,) on cpu"),
        (torch.zeros(2, device="meta"), "torch.float32 (2,) on meta"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo torch.float32 (2,) on cpu"),
    ],
)
def test_grown_values_must_be_as_many_numbers_as_grow(values, got):
    def mine(count, shape, nnz, generator):
        return values

    layer = view_of(torch.ones(10))
    [update] = propose_updates(Evolution(interval=None), [layer], [0], 0.2)
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'grown_values must give 2 floating-point numbers, got {got} ')}"
    ):
        checked_grown_values(mine, update, layer)


def test_grown_values_of_any_floating_kind_do():
    layer = view_of(torch.ones(10))
    for values in (
        torch.ones(2).half(),
        torch.ones(2, requires_grad=True),
        torch.ones(4)[::2],
        torch._neg_view(-torch.ones(2)),
    ):
        [update] = propose_updates(Evolution(interval=None), [layer], [0], 0.2)
        given = checked_grown_values(lambda *_, values=values: values, update, layer)
        assert given.tolist() == [1, 1]
        assert not given.requires_grad
