"""Algorithms: when they evolve, how they are written, and what they do to a model."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import (
    GMP,
    SET,
    Evolution,
    GraNet,
    RigL,
    SparseLinear,
    Static,
    coin,
    cosine,
    sparsify,
    summary,
)
from sparsify.evolution import (
    across_layers,
    by_gradient,
    cubic,
    feeding_units,
    mixed,
    per_layer,
    saliency,
    sparing_units,
    uniformly,
)
from tests.support.models import mlp


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


def test_algorithms_print_as_they_are_written():
    assert repr(SET()) == "SET()"
    assert repr(SET(interval=100, until=300)) == "SET(interval=100, until=300)"
    assert repr(RigL(until=750)) == "RigL(until=750)"
    assert repr(GMP(until=300, begin=10)) == "GMP(until=300, begin=10)"
    mixing = Evolution(interval=5, drop_fraction=cosine(0.3, 750), grow=mixed(by_gradient, uniformly, share=0.5))
    assert (
        repr(mixing)
        == "Evolution(interval=5, drop_fraction=cosine(0.3, 750), grow=mixed(by_gradient, uniformly, share=0.5))"
    )


def test_a_subclass_with_another_constructor_prints_what_it_has_become():
    class Each(SET):
        def __init__(self, epoch):
            super().__init__(interval=2 * epoch, until=20 * epoch)

    assert repr(Each(5)) == "Each(interval=10, until=100)"


def test_rigl_and_granet_anneal_to_until():
    for algorithm in RigL(until=750), GraNet(until=750):
        assert [algorithm.fraction(step) for step in (0, 300, 750)] == [cosine(0.3, 750)(s) for s in (0, 300, 750)]
    assert RigL().fraction(10**6) == RigL(until=0).fraction(0) == 0.3
    assert RigL(drop_fraction=0.5, until=750).fraction(300) == 0.5


def test_pruning_must_be_whole():
    with pytest.raises(ValueError, match="start_density must be given with surplus"):
        Evolution(interval=100, surplus=cubic(1.0, 100))
    assert Evolution(until=100, start_density=0.5).pruning == cubic(1.0, 100)
    with pytest.raises(
        ValueError,
        match=r"start_density must be in \(0, 1\], got 50. For 50 % of the weights pass start_density=0.5.$",
    ):
        GMP(until=100, start_density=50)
    with pytest.raises(ValueError, match="until must be after begin, got until=100 and begin=200"):
        GMP(until=100, begin=200)
    model = mlp(20, 30, 5)
    with pytest.raises(ValueError, match=r"start_density must be at least the density in the end, got 0\.1"):
        sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5, evolution=GMP(until=100, start_density=0.1))
    assert isinstance(model[0], nn.Linear)


def test_the_last_step_of_pruning_is_always_due():
    assert [step for step in range(1, 99) if GMP(until=25, interval=10).due(step)] == [10, 20, 25]
    assert GraNet(until=25, interval=coin(0.0)).due(25)


def run(evolution, density=0.2, steps=60, make=torch.optim.Adam, sizes=(20, 30, 30, 5), seed=0):
    """A small classifier trained on its way; what it was at the end, and how many connections there were when."""
    torch.manual_seed(seed)
    model = mlp(*sizes)
    model, optimizer = sparsify(model, make(model.parameters(), lr=0.01), density, evolution=evolution, seed=seed)
    layers = [module for module in model if isinstance(module, SparseLinear)]
    counts = [[layer.nnz for layer in layers]]
    for _ in range(steps):
        images = torch.randn(16, sizes[0])
        loss = F.cross_entropy(model(images), images[:, : sizes[-1]].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for layer in layers:  # every vector still has one entry for each connection
            for buffer in optimizer.state[layer.values].values():
                assert buffer.dim() == 0 or buffer.shape == layer.values.shape
        counts.append([layer.nnz for layer in layers])
    return model, optimizer, counts


@pytest.mark.parametrize(
    "evolution",
    [
        SET(interval=5),
        RigL(interval=5, until=50),
        RigL(interval=5, grow=mixed(by_gradient, uniformly, share=0.5)),
        Evolution(interval=5, drop=saliency),
        Evolution(interval=5, grow=feeding_units(by_gradient)),
    ],
)
def test_every_layer_keeps_its_count(evolution):
    _, optimizer, counts = run(evolution)
    assert all(count == counts[0] for count in counts)
    assert sum(sum(record.grown.values()) for record in optimizer.history) > 0


def test_across_layers_the_model_keeps_its_count_and_layers_change():
    _, _, counts = run(Evolution(interval=5, scope=across_layers))
    assert {sum(count) for count in counts} == {sum(counts[0])}
    assert counts[-1] != counts[0]


def test_across_layers_with_spared_units_all_layers_live_on():
    evolution = Evolution(interval=1, drop=sparing_units(saliency), scope=across_layers)
    model, optimizer, counts = run(evolution, density=0.25, steps=100, sizes=(8, 8, 8, 8))
    assert len(optimizer.history) == 100
    assert {sum(count) for count in counts} == {48}
    assert min(map(min, counts)) >= 1
    fed = [len((layer.flat() // 8).unique()) for layer in model if isinstance(layer, SparseLinear)]
    torch.manual_seed(0)
    start, _ = sparsify(mlp(8, 8, 8, 8), None, 0.25, seed=0)
    assert all(now >= len((layer.flat() // 8).unique()) for now, layer in zip(fed, start[::2], strict=True))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.Rprop])
@pytest.mark.parametrize(
    "evolution",
    [
        GMP(until=40, interval=7),
        GMP(until=40, begin=10, interval=7, scope=across_layers),
        GraNet(until=50, prune_until=40, interval=7),
    ],
)
def test_pruning_falls_along_a_cubic_to_exactly_the_target(evolution, make):
    _, optimizer, counts = run(evolution, make=make)
    layers = list(optimizer.history[0].dropped)
    target = {row.name: row.nnz for row in summary_of_target().sparse}
    total = sum(target.values())
    first = sum(counts[0])
    assert first == (20 * 30 + 30 * 30 + 30 * 5 if evolution.start_density == 1 else pytest.approx(825, abs=1))
    assert sum(counts[-1]) == total
    if evolution.scope is not across_layers:
        assert counts[-1] == [target[name] for name in layers]
    for step in range(7, 40, 7):
        expected = total + evolution.pruning(step) * (first - total)
        assert sum(counts[step]) == pytest.approx(expected, abs=2)
    assert all(sum(after) <= sum(before) for before, after in pairwise(counts))


def summary_of_target():
    torch.manual_seed(0)
    model, _ = sparsify(mlp(20, 30, 30, 5), None, 0.2)
    return summary(model)


def test_gmp_drops_the_weakest_for_good():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.4, -0.1, 0.3, -0.2]]))
    layer, optimizer = sparsify(
        model, torch.optim.SGD(model.parameters(), lr=1e-9), 0.5, evolution=GMP(until=2, interval=2)
    )
    for _ in range(2):
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert layer.to_dense()[0].tolist() == pytest.approx([0.4, 0, 0.3, 0])


def test_rigl_grows_where_the_gradient_of_the_step_is_largest():
    torch.manual_seed(0)
    model = nn.Linear(30, 20)
    layer, optimizer = sparsify(
        model, torch.optim.SGD(model.parameters(), lr=0.1), 0.2, evolution=RigL(interval=3, drop_fraction=0.25)
    )
    for step in range(1, 4):
        optimizer.zero_grad()
        gradient, before = torch.zeros(20, 30), layer.flat()
        for size in 8, 5:  # two micro-batches
            input = torch.randn(size, 30)
            error = layer(input)
            error.retain_grad()
            error.square().sum().backward()
            gradient += error.grad.t() @ input
        optimizer.step()
        grown = sorted(set(layer.flat().tolist()) - set(before.tolist()))
        if step < 3:
            assert grown == []
    scores = gradient.abs().flatten()
    scores[before] = -1
    assert grown == scores.topk(30).indices.sort().values.tolist()
    assert optimizer.history[-1].grown == {"": 30}


def test_pruning_goes_on_under_torch_compile():
    model = mlp(20, 30, 5)
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters()), 0.2, evolution=GMP(until=12, interval=3))
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(13):
        optimizer.zero_grad()
        compiled(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
    assert sum(layer.nnz for layer in (model[0], model[2])) == 150
    input = torch.randn(4, 20)
    assert torch.allclose(compiled(input), model(input))


@pytest.mark.parametrize("rules", [{"grow": feeding_units()}, {"drop": sparing_units(), "grow": feeding_units()}])
def test_no_output_unit_stays_without_input(rules):
    model, _, _ = run(Evolution(interval=3, scope=per_layer, **rules), density=0.03, sizes=(200, 100, 50, 5))
    counts = [row.without_inputs for row in summary(model).layers if row.without_inputs is not None]
    assert len(counts) >= 2
    assert counts == [0] * len(counts)
    plain, _, _ = run(Evolution(interval=3, scope=per_layer), density=0.03, sizes=(200, 100, 50, 5))
    assert sum(row.without_inputs or 0 for row in summary(plain).layers) > 0, "the rules had something to do"
