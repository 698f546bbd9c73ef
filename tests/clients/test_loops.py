"""What stands in a user's own training loop: scalers, clipping, accumulation, closures, hooks, param groups."""

import copy
from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsify import SET, RigL, SparseLinear, sparsify
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.recorders import recorders
from tests.support.twins import DenseTwin, batches, step

EVOLUTIONS = [SET(interval=3), RigL(interval=3), RigL(interval=1)]


def pair(evolution=SET(interval=3), make=lambda p: torch.optim.Adam(p, 0.01)):  # noqa: B008
    torch.manual_seed(0)
    model = mlp(12, 16, 4, dtype=torch.float64)
    return sparsify(model, make(model.parameters()), 0.35, evolution=evolution, seed=3)


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def steps(optimizer):
    return [record.step for record in optimizer.history]


@pytest.mark.parametrize("fused", [False, True])  # GradScaler skips a plain optimizer and steps a fused one in vain
@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("evolution", EVOLUTIONS)
def test_steps_on_infinite_gradients_leave_no_trace(evolution, set_to_none, fused):
    """Not in the count of steps, and not in what evolution does: one of them comes where it is due."""

    def train(bad):
        model, optimizer = pair(evolution, lambda p: torch.optim.Adam(p, 0.01, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        every = batches(10)
        for number, batch in enumerate(every):
            for broken in [True] * (number in bad) + [False]:
                optimizer.zero_grad(set_to_none)
                scaler.scale(loss_of(model, every[0] if broken else batch)).backward()
                if broken:
                    model[0].values.grad[0] = float("inf")
                scaler.step(optimizer)
                scaler.update()
        return model, optimizer, scaler

    model, optimizer, scaler = train(bad=(2, 4))
    expected, other, _ = train(bad=())
    assert steps(optimizer) == steps(other) == list(range(evolution.interval, 11, evolution.interval))
    assert scaler.get_scale() == 2.0**8
    assert_same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize("evolution", EVOLUTIONS)
def test_grad_scaler_with_clipping_changes_nothing(evolution):
    def train(scaler):
        model, optimizer = pair(evolution)
        for batch in batches(10):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
        return model.state_dict(), optimizer.state_dict()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    assert_same(train(scaler), train(torch.amp.GradScaler("cpu", enabled=False)))
    assert scaler.get_scale() == 2.0**13


@pytest.mark.parametrize("clip", [lambda p: clip_grad_norm_(p, 0.05), lambda p: clip_grad_value_(p, 0.01)])
def test_clipping_is_that_of_the_dense_twin(clip):
    def make(parameters):
        return torch.optim.SGD(parameters, 0.5, momentum=0.9)

    model, optimizer = pair(SET(interval=4), make)
    twin = DenseTwin(model, make, {})
    for number, batch in enumerate(batches(), 1):
        step(model, optimizer, batch, lambda: clip(model.parameters()))
        twin.step(batch, lambda: clip(twin.model.parameters()))
        if number % 4 == 0:
            twin.follow()
        for layer, weight in twin.pairs:
            torch.testing.assert_close(layer.to_dense(), weight * twin.active[weight])


@pytest.mark.parametrize("evolution", EVOLUTIONS)
def test_accumulated_micro_batches_are_one_batch(evolution):
    def train(parts):
        model, optimizer = pair(evolution)
        for inputs, labels in batches(12):
            for micro in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
                (loss_of(model, micro) / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    one, four = train(1), train(4)
    for i in (0, 2):
        assert torch.equal(one[i].flat(), four[i].flat())
        torch.testing.assert_close(one[i].values, four[i].values)


def test_a_closure_gives_its_loss_and_one_that_raises_takes_no_step():
    model, optimizer = pair()
    batch = batches(1)[0]

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    expected = loss_of(model, batch)
    assert torch.equal(optimizer.step(closure), expected)

    def broken():
        raise KeyError("no more data")

    for _ in range(3):
        with pytest.raises(KeyError):
            optimizer.step(broken)
    for _ in range(2):
        optimizer.step(closure=closure)
    assert steps(optimizer) == [3]


def test_step_hooks_run_in_their_order_around_evolution():
    """Before the step; after it: those that were there before sparsify see the old topology, later ones the new."""
    model = mlp(12, 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    seen = []

    def note(moment):
        return lambda *_: seen.append((moment, model[0].flat().clone()))

    early = optimizer.register_step_post_hook(note("early"))
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=SET(interval=1))
    optimizer.register_step_pre_hook(note("before"))
    optimizer.register_step_post_hook(note("late"))
    everywhere = register_optimizer_step_post_hook(note("everywhere"))
    try:
        old = model[0].flat().clone()
        model(torch.randn(8, 12)).sum().backward()
        optimizer.step()
    finally:
        everywhere.remove()
    new = model[0].flat()
    assert [moment for moment, _ in seen] == ["before", "early", "late", "everywhere"]
    assert not torch.equal(old, new)
    for moment, topology in seen:
        assert torch.equal(topology, old if moment in ("before", "early") else new)
    early.remove()
    optimizer.step()
    assert [moment for moment, _ in seen[4:]] == ["before", "late"]


@pytest.mark.parametrize(
    "zero",
    [
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
        lambda model, optimizer: model.zero_grad(),
        lambda model, optimizer: model.zero_grad(set_to_none=False),
        lambda model, optimizer: [setattr(p, "grad", None) for p in model.parameters()],
        lambda model, optimizer: [p.grad.zero_() for p in model.parameters() if p.grad is not None],
    ],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("evolution", EVOLUTIONS)
def test_gradients_may_be_zeroed_in_every_way(evolution, first, zero):
    def train(first, zero):
        model, optimizer = pair(evolution)
        for batch in batches(10):
            if first:
                zero(model, optimizer)
            loss_of(model, batch).backward()
            optimizer.step()
            if not first:
                zero(model, optimizer)
        return model.state_dict()

    assert_same(train(first, zero), train(True, lambda model, optimizer: optimizer.zero_grad()))


def test_a_loop_that_never_zeroes_its_gradients_hoards_no_passes():
    before = WeakSet(recorders())
    model, optimizer = pair(RigL(interval=1))
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        assert [len(each.passes) for each in recorders() if each not in before] == [1, 1]


def test_groups_with_options_of_their_own_train_as_the_dense_twin_does():
    def make(parameters):
        parameters = list(parameters)
        groups = [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "lr": 0.05}]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)

    model, optimizer = pair(SET(interval=4), make)
    twin = DenseTwin(model, make, {})
    for number, batch in enumerate(batches(), 1):
        step(model, optimizer, batch)
        twin.step(batch)
        if number % 4 == 0:
            twin.follow()
        for i, (layer, weight) in zip((0, 2), twin.pairs, strict=True):
            torch.testing.assert_close(layer.to_dense(), weight * twin.active[weight])
            torch.testing.assert_close(layer.bias, twin.model[i].bias)


def test_a_dense_layer_added_later_trains():
    model, optimizer = pair()
    head = nn.Linear(4, 4, dtype=torch.float64)
    before = head.weight.detach().clone()
    optimizer.add_param_group({"params": head.parameters(), "lr": 0.5})
    for batch in batches(6):
        step(nn.Sequential(model, head), optimizer, batch)
    assert (head.weight - before).abs().min() > 0.1
    assert steps(optimizer) == [3, 6]
    assert len(optimizer.state_dict()["param_groups"]) == 2


def test_a_sparse_layer_added_later_trains_at_its_topology_and_resumes():
    """Evolution is of the layers that sparsify made; whoever wants more makes a SparseOptimizer of them all."""

    def grown():
        model, optimizer = pair()
        late = SparseLinear(4, 4, 0.5, dtype=torch.float64)
        optimizer.add_param_group({"params": late.parameters()})
        return nn.Sequential(model, late), optimizer

    def train(model, optimizer, part):
        for batch in batches(12)[part]:
            step(model, optimizer, batch)
        return model.state_dict(), optimizer.state_dict()

    model, optimizer = grown()
    flat, before = model[1].flat().clone(), model[1].values.detach().clone()
    halfway = copy.deepcopy(train(model, optimizer, slice(6)))
    assert torch.equal(model[1].flat(), flat)
    assert (model[1].values != before).all()
    assert [set(record.grown) for record in optimizer.history] == [{"0", "2"}] * 2
    resumed = grown()
    for part, state in zip(resumed, halfway, strict=True):
        part.load_state_dict(state)
    assert_same(train(*resumed, slice(6, 12)), train(model, optimizer, slice(6, 12)))
