"""The gradient that growth sees is the one that the optimizer sees."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsify import RigL, SparseLinear, sparsify
from sparsify._src.kernels import Recorder, recorder
from tests.support.models import mlp


def recorded(layer, keeper):
    """The dense gradient that the kept passes amount to."""
    total = torch.zeros(layer.out_features, layer.in_features)
    for grad, input in keeper.passes:
        total += grad.float().t() @ input.float()
    return total


def agrees(layer, keeper):
    """At the connections, the kept passes amount to what autograd accumulated."""
    return torch.allclose(recorded(layer, keeper).flatten()[layer.flat()], layer.values.grad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def watched():
    layer = SparseLinear(20, 10, 0.3)
    return layer, Recorder(layer)


def backward(layer, batch=4, scale=1.0):
    (scale * layer(torch.randn(batch, 20)).square().sum()).backward()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_add_up_until_the_gradient_is_zeroed(watched, set_to_none):
    layer, keeper = watched
    for _ in range(3):
        for size in 4, 7, 2:
            backward(layer, size)
        assert [len(grad) for grad, _ in keeper.passes] == [4, 7, 2]
        assert agrees(layer, keeper)
        layer.zero_grad(set_to_none=set_to_none)  # and no step: a GradScaler skips it where a gradient is infinite


def test_a_shared_layer_is_passed_several_times_in_one_backward(watched):
    layer, keeper = watched
    ((layer(torch.randn(3, 20)) + layer(torch.randn(3, 20))).square().sum()).backward()
    assert len(keeper.passes) == 2
    assert agrees(layer, keeper)


def test_after_a_step_passes_stay_until_the_next_backward(watched):
    layer, keeper = watched
    backward(layer)
    keeper.stepped()
    assert len(keeper.passes) == 1, "evolve() by hand may still ask for them"
    layer.values.grad = None
    backward(layer, 9)
    assert [len(grad) for grad, _ in keeper.passes] == [9]


def test_kept_operands_do_not_change_with_the_users_buffers(watched):
    layer, keeper = watched
    input = torch.randn(5, 20)
    layer(input).square().sum().backward()
    input.zero_()
    assert agrees(layer, keeper)


@pytest.mark.parametrize("shape", [(5, 20), (20,), (2, 3, 20), (0, 20)])
def test_inputs_of_any_rank(watched, shape):
    layer, keeper = watched
    layer(torch.randn(shape)).square().sum().backward()
    assert agrees(layer, keeper)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    layer = SparseLinear(20, 10, 0.3, dtype=dtype)
    keeper = Recorder(layer)
    layer(torch.randn(4, 20, dtype=dtype)).square().sum().backward()
    assert len(keeper.passes) == 1
    assert torch.allclose(recorded(layer, keeper).flatten()[layer.flat()], layer.values.grad.float(), rtol=2e-2)


def test_autocast(watched):
    layer, keeper = watched
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.randn(4, 20)).float().square().sum()
    loss.backward()
    assert len(keeper.passes) == 1


def test_compiled_graphs_are_seen(watched):
    layer, keeper = watched
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for size in 4, 4:
        compiled(torch.randn(size, 20)).square().sum().backward()
    assert len(keeper.passes) == 2
    assert agrees(layer, keeper)


def test_other_layers_are_not_mixed_up(watched):
    layer, keeper = watched
    copied = copy.deepcopy(layer)
    backward(copied)
    assert keeper.passes == []
    copied(layer(torch.randn(4, 20)).repeat(1, 2)).sum().backward()
    assert len(keeper.passes) == 1


def test_nothing_is_kept_when_no_evolution_by_gradient_comes():
    gc.collect()  # what other tests have left

    def kept():
        return sum(len(keeper.passes) for keeper in recorder._recorders)

    model = mlp(20, 30, 5)
    model, optimizer = sparsify(
        model, torch.optim.SGD(model.parameters(), lr=0.1), 0.2, evolution=RigL(interval=3, until=6)
    )
    seen = []
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().sum().backward()
        seen.append(kept())
        optimizer.step()
        assert kept() == 0
    assert seen == [0, 0, 2, 0, 0, 2, 0, 0, 0, 0], "one pass of each of two layers, before steps 3 and 6"


def test_by_hand_passes_are_kept_where_there_is_no_schedule():
    model = nn.Linear(20, 10)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3, evolution=RigL(interval=None))
    with pytest.raises(ValueError, match=r"evolve\(\) must follow a backward pass"):
        optimizer.evolve()
    backward(model)
    optimizer.step()
    assert optimizer.evolve().grown == {"": 18}
    scheduled = nn.Linear(20, 10)
    scheduled, optimizer = sparsify(
        scheduled, torch.optim.SGD(scheduled.parameters(), lr=0.1), 0.3, evolution=RigL(interval=9)
    )
    backward(scheduled)
    before = scheduled.flat()
    with pytest.raises(ValueError, match=r"got none kept for layer ''.*interval=None"):
        optimizer.evolve()
    assert torch.equal(scheduled.flat(), before)


def test_a_layer_that_no_backward_reached_stays_as_it_is():
    model = nn.ModuleList([nn.Linear(20, 10), nn.Linear(20, 10)])
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters()), 0.3, evolution=RigL(interval=1))
    before = [layer.flat().clone() for layer in model]
    backward(model[1])
    optimizer.step()
    assert torch.equal(model[0].flat(), before[0])
    assert not torch.equal(model[1].flat(), before[1])
    assert optimizer.history[-1].grown == {"1": 18}


def test_what_is_differentiated_by_its_input_alone_is_not_kept(watched):
    layer, keeper = watched
    backward(layer)
    for again in False, True:
        x = torch.randn(4, 20, requires_grad=True)
        (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=again)
        if again:
            torch.autograd.grad(of_x.sum(), x)
        layer(x).sum().backward(inputs=[x])
    assert sum(len(backward.passes) for backward in keeper._backwards) == 1


def test_passes_that_no_step_follows_do_not_pile_up(watched):
    layer, keeper = watched
    for _ in range(300):
        layer.zero_grad()
        backward(layer)
        torch.autograd.grad(layer(torch.randn(4, 20)).sum(), layer.values)
    assert len(keeper._backwards) <= recorder.LIMIT + 1
    assert len(keeper.passes) == 1
    assert agrees(layer, keeper)


def test_micro_batches_are_never_forgotten(watched):
    layer, keeper = watched
    for _ in range(recorder.LIMIT + 40):
        backward(layer)
    assert len(keeper.passes) == recorder.LIMIT + 40
    torch.autograd.grad(layer(torch.randn(4, 20)).sum(), layer.values)
    assert agrees(layer, keeper)


def test_a_gradient_of_zeros_in_another_tensor_begins_anew(watched):
    layer, keeper = watched
    backward(layer)
    for p in layer.parameters():
        p.grad = None
        p.grad = torch.zeros_like(p)  # where the old one was, as likely as not
    backward(layer, 9)
    assert [backward.sum is not None for backward in keeper._backwards] == [True, True]
    assert [len(grad) for grad, _ in keeper.made(layer.values.grad, compared=False)] == [9]


def test_one_backward_pass_in_and_out_of_a_reentrant_checkpoint(watched):
    layer = SparseLinear(20, 20, 0.3)
    keeper = Recorder(layer)
    hidden = checkpoint(layer, layer(torch.randn(4, 20)), use_reentrant=True)
    layer(hidden).square().sum().backward()
    made = keeper.made(layer.values.grad, compared=False)
    assert len(made) == 3
    assert agrees(layer, keeper)


def test_a_layer_that_is_unfrozen_later_is_watched():
    layer = SparseLinear(20, 10, 0.3).requires_grad_(False)
    keeper = Recorder(layer)
    layer.requires_grad_(True)
    for _ in range(2):
        backward(layer)
    assert len(keeper.made(layer.values.grad, compared=False)) == 2
    assert agrees(layer, keeper)
