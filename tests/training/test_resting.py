"""Only what trains evolves: every other layer keeps topology and values."""

import copy

import pytest
import torch
from torch import nn

from sparsify import GMP, SET, Evolution, GraNet, RigL, sparsify
from sparsify.evolution import across_layers, saliency
from tests.support.comparing import assert_same
from tests.support.models import mlp

ALGORITHMS = {
    "SET": SET(interval=3),
    "RigL": RigL(interval=3),
    "GMP": GMP(until=30, interval=3),
    "GraNet": GraNet(until=30, interval=3),
    "GMP, across layers": GMP(until=30, interval=3, scope=across_layers),
    "across layers": Evolution(interval=3, scope=across_layers),
    "saliency": Evolution(interval=3, drop=saliency),
    "a callable": SET(interval=lambda step: step % 3 == 0),
}
MAKES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}


class TwoHeads(nn.Module):
    """A body and two heads, of which each batch trains one."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x, head="first"):
        return getattr(self, head)(self.body(x).relu())


def build(evolution, make=MAKES["SGD"], model=TwoHeads):
    torch.manual_seed(0)
    model = model()
    groups = [{"params": list(part.parameters())} for part in model.children() if list(part.parameters())]
    return sparsify(model, make(groups), 0.3, evolution=evolution, seed=1)


def step(model, optimizer, number, *args, set_to_none=True):
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none)
    (model(x, *args) - 1).square().mean().backward()
    optimizer.step()


def weights(layer):
    return copy.deepcopy((layer.flat(), layer.values.detach()))


def freeze(model, optimizer):
    model.second.requires_grad_(False)


def remove(model, optimizer):
    del optimizer.param_groups[2]


def stop(model, optimizer):
    optimizer.param_groups[2]["lr"] = 0.0


def stop_by_a_tensor(model, optimizer):
    optimizer.param_groups[2]["lr"] = torch.tensor(0.0)


def nothing(model, optimizer):
    """The other head is not called."""


@pytest.mark.parametrize("rest", [freeze, remove, stop, stop_by_a_tensor, nothing])
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("make", MAKES)
def test_what_does_not_train_keeps_topology_and_values(name, rest, make):
    if rest is stop_by_a_tensor and make == "SGD":
        pytest.skip("SGD takes no tensor where it takes many parameters at once")
    model, optimizer = build(ALGORITHMS[name], MAKES[make])
    for number in range(4):
        step(model, optimizer, number, "second")
        step(model, optimizer, number, "first")
    rest(model, optimizer)
    before, others = weights(model.second), (model.body.flat(), model.first.flat())
    evolutions = len(optimizer.history)
    head = "second" if rest in (stop, stop_by_a_tensor) else "first"
    step(model, optimizer, 5, head)  # the interval in which it rested has begun with a step in which it trained
    for number in range(12):
        step(model, optimizer, number, head)
    old, new = before[0], model.second.flat()
    assert torch.equal(new, old) or rest is nothing
    for record in optimizer.history[evolutions + 1 :]:
        assert "second" not in record.dropped
        assert "body" in record.dropped
    if rest is not nothing:
        assert_same(weights(model.second), before)
        assert "second" not in optimizer.history[evolutions].dropped
    assert not torch.equal(model.body.flat(), others[0])
    if head == "first":
        assert not torch.equal(model.first.flat(), others[1])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_head_without_gradient_rests_until_it_is_called_again(set_to_none):
    model, optimizer = build(SET(interval=3))
    for number in range(7):
        step(model, optimizer, number, "first", set_to_none=set_to_none)
    assert [set(record.dropped) for record in optimizer.history] == [{"body", "first"}] * 2
    step(model, optimizer, 8, "second", set_to_none=set_to_none)
    step(model, optimizer, 9, "first", set_to_none=set_to_none)
    assert set(optimizer.history[-1].dropped) == {"body", "first", "second"}  # both have trained since the last


@pytest.mark.parametrize("scope", ["per_layer", "across_layers"])
@pytest.mark.parametrize("algorithm", [GMP, GraNet])
@pytest.mark.parametrize("after", [False, True])
def test_gradual_pruning_catches_up_when_a_layer_trains_again(algorithm, scope, after):
    options = {"scope": across_layers} if scope == "across_layers" else {}
    model, optimizer = build(algorithm(until=30, interval=3, start_density=0.6, **options))
    targets = {name: last for name, (_, last) in optimizer.state_dict()["sparsify"]["counts"].items()}
    model.second.requires_grad_(False)
    full = model.second.nnz
    for number in range(45 if after else 20):
        step(model, optimizer, number, "first")
    assert model.second.nnz == full > targets["second"]
    records = len(optimizer.history)
    assert records == (10 if after else 6)
    model.second.requires_grad_(True)
    for number in range(4 if after else 30):
        step(model, optimizer, number, "second" if number % 2 else "first")
    total = sum(layer.nnz for layer in (model.body, model.first, model.second))
    assert total == sum(targets.values())
    if scope == "per_layer":
        assert model.second.nnz == targets["second"]
    if after:
        assert len(optimizer.history) == records + 1
        assert optimizer.history[-1].step == 48
        assert not any(optimizer.history[-1].grown.values())
    count = len(optimizer.history)
    for number in range(8):
        step(model, optimizer, number, "second")
    assert len(optimizer.history) == count


def test_by_hand_all_that_can_train_evolve_where_none_has_trained_since():
    model, optimizer = build(SET(interval=None))
    assert set(optimizer.evolve().dropped) == {"body", "first", "second"}
    step(model, optimizer, 1, "first")
    assert set(optimizer.evolve().dropped) == {"body", "first"}
    model.second.requires_grad_(False)
    optimizer.zero_grad()
    assert set(optimizer.evolve().dropped) == {"body", "first"}
    for layer in model.body, model.first:
        layer.requires_grad_(False)
    assert optimizer.evolve().dropped == {}


def test_steps_in_vain_do_not_train():
    model, optimizer = build(SET(interval=3), lambda p: torch.optim.SGD(p, lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number in range(8):
        optimizer.zero_grad()
        head = "second" if number == 1 else "first"
        loss = model(torch.randn(8, 12), head).square().mean() * (torch.inf if head == "second" else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [set(record.dropped) for record in optimizer.history] == [{"body", "first"}] * 2


def test_who_has_trained_is_saved():
    model, optimizer = build(SET(interval=4))
    step(model, optimizer, 1, "second")
    step(model, optimizer, 2, "first")
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, resumed = build(SET(interval=4))
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for number in range(3, 6):
        step(model, optimizer, number, "first")
        step(other, resumed, number, "first")
    assert set(resumed.history[-1].dropped) == {"body", "first", "second"}
    assert_same(other.state_dict(), model.state_dict())


def test_a_closure_makes_the_gradients_that_count():
    model, optimizer = build(SET(interval=2))
    for _ in range(4):

        def closure():
            optimizer.zero_grad()
            loss = model(torch.randn(8, 12)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert [set(record.dropped) for record in optimizer.history] == [{"body", "first"}] * 2


def test_a_learning_rate_of_none_trains():
    model = mlp(12, 16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=SET(interval=1))
    optimizer.param_groups[0]["lr"] = 0.1
    del optimizer.param_groups[0]["lr"]
    assert set(optimizer.evolve().grown) == {"0", "2"}
    optimizer.param_groups[0]["lr"] = None
    assert set(optimizer.evolve().grown) == {"0", "2"}
