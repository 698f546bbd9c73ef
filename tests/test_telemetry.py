"""What evolution did."""

import pytest
import torch

from sparsify import SET, sparsify
from sparsify.telemetry import SIZE, Explored
from sparsify.topology import generator, sample

from .conftest import mlp


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


def test_the_optimizer_knows_what_was_explored_and_keeps_it_in_checkpoints():
    def build():
        torch.manual_seed(0)
        model = mlp(40, 30, 5)
        return sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.2, evolution=SET(None), seed=0)

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
