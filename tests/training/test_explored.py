"""What evolution did."""

import numpy as np
import pytest
import torch

from sparsify import SET, sparsify
from sparsify._src.training.explored import PADDING, SIZE, Explored
from sparsify._src.vectors import generator, mixed, sample
from tests.support.models import mlp


def test_small_counts_are_exact():
    explored = Explored(torch.tensor([0, 3, 5]), (10, 10))
    assert explored.share == 0.03
    explored.add(torch.tensor([3, 7]))
    assert explored.count == 4
    explored.add(torch.arange(100))
    assert explored.share == 1


@pytest.mark.parametrize("total", [10**6, 10**11])
def test_large_counts_are_estimated_in_constant_memory(total):
    shape, seen = (1, total), torch.empty(0, dtype=torch.int64)
    explored = Explored(seen, shape)
    for turn in range(5):
        flat = sample(total, 60_000, generator("explored", turn))
        explored.add(flat)
        seen = torch.cat([seen, flat]).unique()
    assert explored.count == pytest.approx(len(seen), rel=0.06)  # four standard errors
    assert len(explored.sketch) == SIZE


def test_hashes_are_those_of_splitmix64():
    # The first outputs of the reference implementation from state 0, which hashes the multiples of its step.
    steps = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert list(map(hex, mixed(steps))) == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@pytest.mark.parametrize("seen", [0, 1, 5, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE])
def test_saved_sketches_are_all_of_one_length_and_go_on_as_they_were(seen):
    places = 10 * SIZE
    explored = Explored(sample(places, seen, generator("seen", seen)), (10, SIZE))
    state = explored.state_dict()
    assert state["sketch"].shape == (SIZE,)
    assert state["count"] == len(explored.sketch) == min(seen, SIZE)
    assert (state["sketch"][state["count"] :] == PADDING).all()
    fresh = Explored(torch.arange(7), (10, SIZE))
    fresh.check_state_dict(state, "key")
    again = fresh.loaded(state)
    state["sketch"].zero_()  # what was loaded is a copy, and what was saved too
    more = sample(places, 300, generator("more", seen))
    for one in explored, again:
        one.add(more)
    assert torch.equal(again.sketch, explored.sketch)
    assert again.share == explored.share
    assert fresh.count == 7
    if seen <= SIZE - 300:
        assert again.count == len(set(sample(places, seen, generator("seen", seen)).tolist()) | set(more.tolist()))


def test_the_optimizer_knows_what_was_explored_and_keeps_it_in_checkpoints():
    def build():
        torch.manual_seed(0)
        model = mlp(40, 30, 5)
        return sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.2, evolution=SET(interval=None), seed=0)

    model, optimizer = build()
    ever = [set(layer.flat().tolist()) for layer in (model[0], model[2])]
    first = optimizer.explored
    for _ in range(4):
        optimizer.evolve()
        for places, layer in zip(ever, (model[0], model[2]), strict=True):
            places |= set(layer.flat().tolist())
    assert optimizer.explored == {"0": len(ever[0]) / 1200, "2": len(ever[1]) / 150}
    assert first["0"] < optimizer.explored["0"]
    again, restored = build()
    again.load_state_dict(model.state_dict())
    restored.load_state_dict(optimizer.state_dict())
    assert restored.explored == optimizer.explored
