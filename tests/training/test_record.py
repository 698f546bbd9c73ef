"""What a record says of each layer, against what is counted by hand."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsify import GMP, SET, LayerRecord, Record, RigL, SparseLinear, Static, sparsify, trim
from sparsify._src.evolution.update import Update
from sparsify._src.training import progress as progress_room
from sparsify._src.training.explored import Explored
from sparsify._src.training.last_grown import SIZE, LastGrown
from sparsify._src.training.record import Spread
from sparsify._src.training.recording import LOOKED_AT, layer_record, spread
from sparsify._src.vectors import generator, merge, mixed, sample
from tests.support.comparing import assert_same
from tests.support.pairs import ALGORITHMS, build, everything, short, train, trained


def spread_of(numbers):
    """By NumPy, in double precision."""
    return Spread(*np.percentile(np.asarray(numbers, dtype=np.float64), [0, 25, 50, 75, 100]).tolist())


def places(model):
    return {
        name: set(layer.flat().tolist()) for name, layer in model.named_modules() if isinstance(layer, SparseLinear)
    }


def counted(layer, before, grown_before, ever, target):
    """The record of a layer that has evolved, from the dense matrix and sets of its places."""
    now, matrix = set(layer.flat().tolist()), torch.zeros(layer.shape)
    matrix.view(-1)[layer.flat()] = 1
    return LayerRecord(
        evolved=True,
        dropped=len(before - now),
        grown=len(now - before),
        connections=len(now),
        density=len(now) / matrix.numel(),
        target=target / matrix.numel(),
        turnover=len(before - now) / len(before),
        survived=len(grown_before & now) / len(grown_before) if grown_before else None,
        explored=len(ever | now) / matrix.numel(),
        dead_inputs=int((matrix.sum(0) == 0).sum()),
        dead_outputs=int((matrix.sum(1) == 0).sum()),
        fan_in=spread_of(matrix.sum(1)),
        fan_out=spread_of(matrix.sum(0)),
        magnitude=spread_of(layer.values.detach().abs()),
    )


def assert_close(found, expected):
    for name, entry in found._asdict().items():
        right = getattr(expected, name)
        assert type(entry) is type(right), name
        assert entry == (right if right is None else pytest.approx(right, rel=1e-6)), name


@pytest.mark.parametrize("evolution", ALGORITHMS, ids=short)
def test_a_record_says_what_is_counted_by_hand(evolution):
    model, optimizer = build(evolution)
    targets = {name: last for name, (_, last) in optimizer._self_evolver.progress.counts.items()}
    ever = now = places(model)
    grown = {name: set() for name in now}
    for step in range(1, 31):
        train(model, optimizer, step, step + 1)
        if not optimizer.history or optimizer.history[-1].step != step:
            assert places(model) == now
            continue
        before, now = now, places(model)
        record = optimizer.history[-1]
        for name, layer in record.layers.items():
            assert_close(layer, counted(model[int(name)], before[name], grown[name], ever[name], targets[name]))
        grown = {name: now[name] - before[name] for name in now}
        ever = {name: ever[name] | now[name] for name in now}
        assert record.dropped == {name: len(before[name] - now[name]) for name in now}
        assert record.grown == {name: len(grown[name]) for name in now}
        assert record.connections == {name: len(now[name]) for name in now}
        assert record.density == pytest.approx(sum(map(len, now.values())) / (12 * 16 + 16 * 4))
    assert len(optimizer.history) >= 8
    survived = [layer.survived for record in optimizer.history for layer in record.layers.values()]
    if isinstance(evolution, GMP):
        assert survived == [None] * len(survived)  # nothing grows
    else:
        assert survived[:2] == [None, None]
        assert any(0 < share < 1 for share in survived[2:])


finite = st.floats(-(2.0**100), 2.0**100)


@given(st.lists(finite, min_size=1, max_size=40) | st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_a_spread_is_that_of_numpys_percentiles(numbers):
    found = spread(np.array(numbers))
    rounding = 1e-9 * max(1, *map(abs, numbers))  # of what is between large numbers of both signs
    assert tuple(found) == pytest.approx(tuple(spread_of(numbers)), rel=1e-9, abs=rounding)
    assert list(found) == sorted(found)
    assert {type(number) for number in found} == {float}


def test_a_spread_of_what_has_diverged_and_of_nothing():
    assert spread(np.array([3.0, np.inf, 1.0, np.inf, 2.0])) == (1.0, 2.0, 3.0, np.inf, np.inf)
    assert spread(np.array([1.0, np.inf])) == (1.0, np.inf, np.inf, np.inf, np.inf)
    with_nan = spread(np.array([np.nan, 2.0, 1.0, 3.0, 4.0]))
    assert with_nan[:4] == (1.0, 2.0, 3.0, 4.0)
    assert math.isnan(with_nan.most)
    assert all(map(math.isnan, spread(np.empty(0))))


def big_layer(density=0.05):
    return SparseLinear(3000, 2000, density=density)  # 300,000 connections


def evolved(layer, dropped, seed=0):
    """An update that drops every `dropped`th connection, and the values of what grows in their place."""
    flat, survives = layer.flat(), torch.ones(layer.nnz, dtype=torch.bool)
    survives[::dropped] = False
    new = sample(math.prod(layer.shape), 4 * layer.nnz, generator(seed))
    new = new[~torch.isin(new, flat)]
    new = new[sample(len(new), int((~survives).sum()), generator(seed, "of"))]
    return Update(*merge(flat, survives, new), layer.nnz, new), torch.randn(len(new))


def test_of_many_values_some_at_equal_distances_are_looked_at():
    layer = big_layer()
    update, grown = evolved(layer, dropped=3)
    explored, nothing = Explored(layer.flat(), layer.shape), LastGrown.none()
    after = update.move(layer.values.detach(), grown).abs()
    new = layer.prepare_topology(update.flat, after, None)
    found = layer_record(layer, update, new, 500, explored, nothing)
    stride = math.ceil(len(after) / LOOKED_AT)
    assert stride == 5
    assert found.magnitude == pytest.approx(spread_of(after[::stride]), rel=1e-6)
    assert found.magnitude[1:4] == pytest.approx(spread_of(after)[1:4], rel=0.05)
    resting = layer_record(layer, None, None, 500, explored, nothing)
    assert resting.magnitude == pytest.approx(spread_of(layer.values.detach().abs()[::5]), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_what_survived_of_many_is_estimated_from_a_few_that_are_drawn_alike_at_any_time(share):
    layer = big_layer()
    grown = sample(math.prod(layer.shape), 50_000, generator("grown"))
    last = LastGrown.of(grown)
    assert len(last.places) == SIZE
    assert torch.isin(last.places, grown).all()
    assert torch.equal(last.places, last.places.sort().values)
    kept = grown[sample(len(grown), round(share * len(grown)), generator("kept"))]
    flat = torch.cat([kept, layer.flat()[~torch.isin(layer.flat(), grown)]]).sort().values
    assert last.survived(flat) == pytest.approx(share, abs=4 * 0.5 / math.sqrt(SIZE))
    assert torch.equal(LastGrown.of(grown.flip(0).sort().values).places, last.places)


@pytest.mark.parametrize("highest", [False, True])
def test_the_places_that_are_kept_are_those_of_the_smallest_hashes(highest):
    grown = sample(10**9, 5 * SIZE, generator("hashes"))
    hashes = mixed(grown.numpy().view(np.uint64))
    if highest:
        hashes |= np.uint64(2**63)  # all of them larger than is likely
    smallest = np.sort(grown.numpy()[np.argsort(hashes)[:SIZE]])
    assert LastGrown.of(grown, hashes).places.tolist() == smallest.tolist()
    if not highest:
        assert LastGrown.of(grown).places.tolist() == smallest.tolist()


def test_what_survived_of_few_is_exact_and_of_none_unknown():
    last = LastGrown.of(torch.tensor([1, 5, 7, 9]))
    assert last.survived(torch.tensor([0, 5, 6, 9, 10])) == 0.5
    assert last.survived(torch.tensor([11])) == 0
    assert last.survived(torch.tensor([], dtype=torch.int64)) == 0
    assert LastGrown.none().survived(torch.tensor([1])) is None


def test_a_layer_that_rests_is_told_of_too():
    model, optimizer = trained(7)
    model[2].values.requires_grad_(False)
    optimizer.zero_grad()
    evolved, values = places(model)["2"], model[2].values.detach().clone()
    train(model, optimizer, 7, 13)
    record, before = optimizer.history[-1], optimizer.history[1]
    assert (record.layers["0"].evolved, record.layers["2"].evolved) == (True, False)
    rested = record.layers["2"]
    assert (rested.dropped, rested.grown, rested.turnover) == (0, 0, 0)
    assert rested.survived == 1  # nothing was dropped since
    assert rested.connections == len(evolved) == model[2].nnz
    assert rested.magnitude == pytest.approx(spread_of(values.abs()), rel=1e-6)
    assert rested[4:6] + rested[8:13] == before.layers["2"][4:6] + before.layers["2"][8:13]
    assert set(record.grown) == set(record.dropped) == {"0"}
    assert set(record.connections) == {"0", "2"}


def test_what_is_reset_has_grown_nothing_and_what_is_trimmed_has_not_survived():
    model, optimizer = trained(7)
    grown = optimizer.history[-1].grown
    model[0].reset_parameters()
    trim(model, 1.0, optimizer)
    trimmed = {name: layer.nnz for name, layer in model.named_children() if isinstance(layer, SparseLinear)}
    assert trimmed == {"0": 0, "2": 0}
    record = optimizer.evolve()
    assert record.layers["0"].survived is None
    assert record.layers["2"].survived == 0
    assert grown["2"] > 0
    for layer in record.layers.values():
        assert (layer.connections, layer.turnover, layer.fan_in.most) == (0, 0, 0)
        assert all(map(math.isnan, layer.magnitude))
    assert (record.layers["0"].dead_inputs, record.layers["0"].dead_outputs) == (12, 16)
    load_again(optimizer, build()[1])


def load_again(optimizer, other):
    """Save and load through a file, as plain data only."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert repr(other.history) == repr(optimizer.history)  # not a number is not equal to itself
    return other


def test_records_of_what_has_diverged_are_made_saved_and_loaded():
    model, optimizer = trained(4)
    with torch.no_grad():
        model[0].values[::2] = math.nan
        model[2].values[3] = math.inf
    optimizer.evolve()
    last = optimizer.history[-1].layers
    assert math.isnan(last["0"].magnitude.most)
    assert last["2"].magnitude.most == math.inf
    load_again(optimizer, build()[1])


@pytest.mark.parametrize("evolution", ALGORITHMS, ids=short)
def test_a_resumed_history_is_that_of_a_training_that_never_stopped(evolution):
    straight = trained(20, evolution=evolution)
    model, optimizer = trained(8, evolution=evolution)
    again, resumed = build(evolution, seed=3)
    again.load_state_dict(model.state_dict())
    load_again(optimizer, resumed)
    train(again, resumed, 8, 20)
    assert resumed.history == straight[1].history
    assert_same(resumed.state_dict(), straight[1].state_dict())
    assert len(resumed.history) >= 4


def test_what_grew_in_another_topology_is_looked_for_in_the_one_that_was_loaded():
    model, optimizer = trained(4)
    grown = optimizer._self_evolver.progress.last_grown["0"]
    other, _ = trained(9, seed=4)
    model.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match="starts afresh"):
        record = optimizer.evolve()
    there = len(set(grown.places.tolist()) & places(model)["0"])
    assert record.layers["0"].survived == there / len(grown.places)


def test_history_and_what_has_grown_begin_anew_where_sparsify_is_called_again():
    model, optimizer = trained(7)
    assert optimizer.history[-1].layers["0"].survived is not None
    model, optimizer = sparsify(model, optimizer, evolution=RigL(interval=3))
    train(model, optimizer, 7, 13)
    assert [record.layers["0"].survived is None for record in optimizer.history] == [True, False]


def test_a_pruned_layer_tells_where_it_is_going():
    model, optimizer = trained(31, evolution=GMP(until=30, interval=3), density=0.2)
    found = [record.layers["0"] for record in optimizer.history]
    assert len({layer.target for layer in found}) == 1
    assert found[0].density > found[0].target == found[-1].density == model[0].density
    assert found[0].turnover > 0
    assert trained(6, density=0.2)[1].history[-1].layers["0"].target == pytest.approx(0.2, abs=0.05)


def test_of_a_convolution_inputs_are_taps_and_outputs_filters():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    model, sgd = sparsify(model, sgd, 0.05, evolution=SET(interval=None), kinds=nn.Conv2d)
    record = sgd.evolve().layers["0"]
    dense = model[0].to_dense().detach() * 0
    dense.view(-1)[model[0].flat()] = 1
    assert dense.shape == (8, 27)
    assert record.dead_inputs == int((dense.sum(0) == 0).sum()) > 0
    assert record.dead_outputs == int((dense.sum(1) == 0).sum())
    assert record.fan_out == spread_of(dense.sum(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_of_any_precision_are_looked_at(dtype):
    model = nn.Sequential(nn.Linear(12, 16)).to(dtype)
    model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3, evolution=SET(interval=None))
    found = sgd.evolve().layers["0"].magnitude
    assert found == pytest.approx(spread_of(model[0].values.detach().double().abs()), rel=1e-6)


def test_static_topologies_have_no_records_but_those_that_are_asked_for():
    _, optimizer = trained(7, evolution=Static())
    assert not optimizer.history
    assert optimizer.evolve().layers["0"].turnover == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_interrupts_a_record_finds_all_as_it_was(error, monkeypatch):
    model, optimizer = trained(7)
    before, made = everything(model, optimizer), []

    def interrupted(*arguments):
        made.append(layer_record(*arguments))
        if len(made) == 2:
            raise error
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(progress_room, "layer_record", interrupted)
        with pytest.raises(error):
            optimizer.evolve()
    assert_same(everything(model, optimizer), before)
    assert optimizer.evolve().layers["0"] == made[0]


def test_a_record_is_copied_and_pickled():
    record = trained(7)[1].history[-1]
    for again in copy.deepcopy(record), pickle.loads(pickle.dumps(record)):
        assert type(again) is Record
        assert type(again.layers["0"]) is LayerRecord
        assert again.layers["0"].fan_in.most == record.layers["0"].fan_in.most
        assert again == record


def test_a_record_is_as_short_for_a_million_connections_as_for_a_hundred():
    lengths = []
    for shape, density in ((20, 50), 0.1), ((4000, 5000), 0.05):
        layer = SparseLinear(*shape, density=density)
        sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
        _, sgd = sparsify(nn.Sequential(layer), sgd, evolution=SET(interval=None), seed=0)
        for _ in range(2):
            record = sgd.evolve()
        assert record.layers["0"].connections == (100, 1_000_000)[len(lengths)]
        lengths.append(len(pickle.dumps(record.layers["0"])))
        kept = sgd._self_evolver.progress.last_grown["0"]
        assert kept.places.untyped_storage().nbytes() <= 8 * SIZE
    assert max(lengths) < 500
