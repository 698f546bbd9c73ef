"""Target networks and averages by any road, against averages of the dense weights at the connections that are there."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparsify import GMP, SET, Evolution, GraNet, SparseOptimizer, Static, sparsify, trim
from sparsify.evolution import across_layers
from tests.support.averages import INTERVAL, TAU, UPDATES, DenseAverage, data_copy, lerp, pair, step, topologies
from tests.support.comparing import assert_same
from tests.support.models import mlp

X = torch.randn(5, 12, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def target_of(policy, how="state_dict", density=0.35):
    """A model of its own, built and made sparse by itself, with the weights of `policy`."""
    torch.manual_seed(7)
    target, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, density, seed=8)
    state = policy.state_dict()
    if how == "a file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    target.load_state_dict(state)
    return target


def compare(target, twin, policy):
    for i, mean in zip((0, 2), twin.means, strict=True):
        torch.testing.assert_close(target[i].to_dense(), mean)
        assert torch.equal(target[i].flat(), policy[i].flat())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("how", ["state_dict", "a file"])
def test_a_target_network_that_has_loaded_the_model_follows_soft_updates(update, how):
    policy, optimizer = pair()
    target, twin = target_of(policy, how), DenseAverage(policy, 1 - TAU)
    for number in range(18):
        step(policy, optimizer, number)
        update(target, policy)
        twin.update(policy)
        compare(target, twin, policy)
    assert len(optimizer.history) == 4


@pytest.mark.parametrize(
    "evolution",
    [
        GMP(until=16, interval=INTERVAL),
        GraNet(until=16, interval=INTERVAL, start_density=0.8),
        Evolution(interval=INTERVAL, scope=across_layers),
    ],
    ids=["GMP", "GraNet", "across_layers"],
)
@pytest.mark.parametrize("begun", [0, 2, 6])
@pytest.mark.parametrize("kind", ["AveragedModel", "target"])
def test_averages_begun_at_any_time_follow_where_nnz_changes(evolution, begun, kind):
    policy, optimizer = pair(evolution)
    for number in range(begun):
        step(policy, optimizer, number)
    if kind == "AveragedModel":
        averaged = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(1 - TAU))
        target, update = averaged.module, averaged.update_parameters
        update(policy)  # with equal values
    else:
        target, update = target_of(policy), lambda policy: data_copy(target, policy)
    twin = DenseAverage(policy, 1 - TAU)
    for number in range(begun, begun + 18):
        step(policy, optimizer, number)
        update(policy)
        twin.update(policy)
        compare(target, twin, policy)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("write", ["AveragedModel", "copy_", "data ="])
def test_an_average_is_one_when_it_was_written_with_equal_values(write, interval):
    model, optimizer = pair(SET(interval=interval))
    if write == "AveragedModel":
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        average = averaged.module
    else:
        average = copy.deepcopy(model)
        for q, p in zip(average.parameters(), model.parameters(), strict=True):
            if write == "copy_":
                q.detach().copy_(p.detach())
            else:
                q.data = p.data.clone()
    for number in range(interval):
        step(model, optimizer, number)
    assert_same(topologies(average), topologies(model))
    if write == "AveragedModel":
        averaged.update_parameters(model)
        assert torch.isfinite(averaged(X)).all()


def test_hard_updates_by_state_dict_hold_still_between_them():
    policy, optimizer = pair()
    target = target_of(policy)
    for number in range(20):
        if number % 7 == 0:
            target.load_state_dict(policy.state_dict())
            kept = copy.deepcopy(policy.state_dict())
        step(policy, optimizer, number)
        assert_same(target.state_dict(), kept)
    assert not torch.equal(target[0].flat(), policy[0].flat())


def test_soft_updates_may_begin_after_a_hard_one():
    policy, optimizer = pair()
    target = target_of(policy)
    for number in range(10):
        step(policy, optimizer, number)
    target.load_state_dict(policy.state_dict())
    twin = DenseAverage(policy, 1 - TAU)
    for number in range(10, 22):
        step(policy, optimizer, number)
        data_copy(target, policy)
        twin.update(policy)
        compare(target, twin, policy)


@pytest.mark.parametrize("twins", [0, 1])
@pytest.mark.parametrize("update", UPDATES)
def test_soft_updates_of_a_target_that_was_left_behind_are_refused(update, twins):
    alike = [pair() for _ in range(twins)]  # of the same seed, in the same notebook, never trained
    policy, optimizer = pair()
    target = target_of(policy)
    for number in range(6):
        step(policy, optimizer, number)
    update(target, policy)
    with pytest.raises(RuntimeError, match="copy of layer '0' that averages weights across an evolution"):
        step(policy, optimizer, 6)
    assert len(alike) == twins


def test_a_copy_left_behind_may_be_written_to_for_its_own_sake():
    model, optimizer = pair()
    pruned, noisy = copy.deepcopy(model), copy.deepcopy(model)
    for number in range(6):
        step(model, optimizer, number)
    trim(pruned, 0.3)
    noisy[0].values.data.add_(torch.randn(noisy[0].nnz, dtype=torch.float64))
    noisy[2].values.data.mul_(0.5)
    before = copy.deepcopy((pruned.state_dict(), noisy.state_dict()))
    for number in range(6, 14):
        step(model, optimizer, number)
    assert_same((pruned.state_dict(), noisy.state_dict()), before)


@pytest.mark.parametrize("twins", [0, 1])
def test_weights_loaded_first_into_the_target_count_too(twins):
    alike = [pair() for _ in range(twins)]  # of the same seed, in the same notebook
    policy, optimizer = pair()
    checkpoint = copy.deepcopy(policy.state_dict())
    step(policy, optimizer, 0)
    torch.manual_seed(7)
    target, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, 0.35, seed=8)
    target.load_state_dict(checkpoint)
    policy.load_state_dict(checkpoint)
    twin = DenseAverage(policy, 1 - TAU)
    for number in range(12):
        step(policy, optimizer, number)
        data_copy(target, policy)
        twin.update(policy)
    compare(target, twin, policy)
    assert len(alike) == twins


def test_a_target_in_another_precision_follows():
    policy, optimizer = pair()
    policy.float()
    torch.manual_seed(7)
    target, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, start=policy.state_dict())
    twin = DenseAverage(policy, 1 - TAU)
    for number in range(12):
        step(policy, optimizer, number, torch.float32)
        data_copy(target, policy)
        twin.update(policy)
    for i, mean in zip((0, 2), twin.means, strict=True):
        assert target[i].values.dtype == torch.float64
        torch.testing.assert_close(target[i].to_dense(), mean.double(), atol=1e-5, rtol=1e-4)


def test_two_critics_made_alike_have_their_own_targets():
    """Both have one topology in the beginning: sparsify seeds by torch.initial_seed() and layer name."""
    critics = [pair(SET(interval=interval)) for interval in (3, 5)]
    for i, (critic, _) in enumerate(critics):
        for p in critic.parameters():
            p.data.add_(0.01 * i)
    assert torch.equal(critics[0][0][0].flat(), critics[1][0][0].flat())
    targets = [target_of(critic) for critic, _ in critics]
    twins = [DenseAverage(critic, 1 - TAU) for critic, _ in critics]
    for number in range(17):
        for (critic, optimizer), target, twin in zip(critics, targets, twins, strict=True):
            step(critic, optimizer, number)
            data_copy(target, critic)
            twin.update(critic)
    for (critic, _), target, twin in zip(critics, targets, twins, strict=True):
        compare(target, twin, critic)


def test_one_target_of_two_equal_models_follows_the_one_that_it_averages():
    models = [pair(SET(interval=3)) for _ in range(2)]
    (first, _), (second, _) = models
    target, twin = target_of(first), DenseAverage(second, 1 - TAU)
    for number in range(14):
        for i, (model, optimizer) in enumerate(models):
            step(model, optimizer, number + 100 * i)
        data_copy(target, second)
        twin.update(second)
    compare(target, twin, second)
    assert not torch.equal(first[0].flat(), second[0].flat())


@pytest.mark.parametrize("how", ["a plain optimizer", "an optimizer of its own", "its own before it loads"])
def test_a_model_that_loads_and_trains_itself_follows_nobody(how):
    model, optimizer = pair()
    other = mlp(12, 16, 4, dtype=torch.float64)
    if how == "its own before it loads":
        other, own = sparsify(other, torch.optim.SGD(other.parameters(), lr=0.0), 0.35, evolution=Static())
    else:
        other, _ = sparsify(other, None, 0.35)
    other.load_state_dict(model.state_dict())
    if how == "a plain optimizer":
        own = torch.optim.SGD(other.parameters(), lr=0.05)
    elif how == "an optimizer of its own":
        plain = torch.optim.SGD(other.parameters(), lr=0.05)
        own = SparseOptimizer(plain, {"0": other[0], "2": other[2]}, Static())
    flat = topologies(other)
    for number in range(12):
        step(model, optimizer, number)
        step(other, own, number + 100)
    assert_same(topologies(other), flat)
    assert not torch.equal(model[0].flat(), flat[0])


def test_an_average_of_an_average_follows_both():
    policy, optimizer = pair()
    target = target_of(policy)
    slow = copy.deepcopy(target)
    twin = DenseAverage(policy, 0.9)
    for number in range(14):
        step(policy, optimizer, number)
        lerp(target, policy)
        lerp(slow, policy)
        twin.update(policy)
    compare(target, twin, policy)
    compare(slow, twin, policy)


def test_pairs_and_averages_are_copied_and_pickled():
    policy, optimizer = pair()
    target = target_of(policy)
    for number in range(6):
        step(policy, optimizer, number)
        lerp(target, policy)
    for restored, own in (copy.deepcopy((policy, optimizer)), pickle.loads(pickle.dumps((policy, optimizer)))):
        again = target_of(restored)
        twin = DenseAverage(restored, 1 - TAU)
        for number in range(6, 14):
            step(restored, own, number)
            lerp(again, restored)
            twin.update(restored)
        compare(again, twin, restored)
    alone = pickle.loads(pickle.dumps(target))
    assert_same(alone.state_dict(), target.state_dict())


def test_what_is_copied_with_its_optimizer_may_be_an_average():
    """As Lightning's StochasticWeightAveraging does, where the module holds the optimizer."""

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.optimizer = pair()

    holder = Holder()
    average, twin = copy.deepcopy(holder), DenseAverage(holder.net, 1 - TAU)
    for number in range(10):
        step(holder.net, holder.optimizer, number)
        lerp(average.net, holder.net)
        twin.update(holder.net)
    compare(average.net, twin, holder.net)


@pytest.mark.parametrize("update", ["copy_", "data.copy_", "data ="])
def test_hard_updates_by_parameter_are_right_at_once(update):
    """In DQN the target computes before the next step."""
    policy, optimizer = pair()
    target = copy.deepcopy(policy)
    for number in range(18):
        step(policy, optimizer, number)
        if number % 6 == 5:
            for q, p in zip(target.parameters(), policy.parameters(), strict=True):
                if update == "copy_":
                    q.detach().copy_(p)
                elif update == "data =":
                    q.data = p.data.clone()
                else:
                    q.data.copy_(p.data)
            with torch.no_grad():
                torch.testing.assert_close(target(X), policy(X))


def test_soft_updates_of_what_was_left_behind_are_refused_where_it_computes():
    policy, optimizer = pair()
    target = copy.deepcopy(policy)
    for number in range(6):
        step(policy, optimizer, number)
    with torch.no_grad():
        target(X)
        data_copy(target, policy)
        with pytest.raises(RuntimeError, match="copy of layer '0' that averages weights across an evolution"):
            target(X)


def test_a_copy_computes_with_other_tensors_in_place_of_its_parameters():
    model, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    copied = copy.deepcopy(model)
    x, scale = torch.randn(5, 12), torch.ones((), requires_grad=True)
    others = {name: scale * p.detach() for name, p in copied.named_parameters()}
    out = torch.func.functional_call(copied, others, (x,))
    assert torch.equal(out, model(x))
    out.sum().backward()
    assert scale.grad is not None
    copied(x).sum().backward()
    assert [layer.gradients for layer in (copied[0], copied[2])] == [1, 1]
