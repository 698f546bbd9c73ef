import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

from sparsify import SET, Evolution, GraNet, RigL, Static, trim
from tests.support.averages import INTERVAL, DenseAverage, pair, step, topologies
from tests.support.comparing import assert_same


def ema(average, model, decay=0.9):
    """As loops write it themselves."""
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def data_ema(average, model, decay=0.9):
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.data.mul_(decay).add_(value.data, alpha=1 - decay)


@pytest.mark.parametrize("kind", ["AveragedModel", "timm", "lerp", "data"])
@pytest.mark.parametrize("evolution", [SET(interval=INTERVAL), RigL(interval=INTERVAL, drop_fraction=0.3)])
def test_an_exponential_average_across_evolutions_is_that_of_the_dense_weights(kind, evolution):
    model, optimizer = pair(evolution)
    if kind == "AveragedModel":
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        averaged.update_parameters(model)  # the first one copies
        average, update = averaged.module, averaged.update_parameters
    elif kind == "timm":
        averaged = ModelEmaV3(model, decay=0.9)
        average, update = averaged.module, averaged.update
    else:
        average = copy.deepcopy(model)
        update = lambda model: {"lerp": ema, "data": data_ema}[kind](average, model)  # noqa: E731
    twin = DenseAverage(model, 0.9)
    for number in range(18):
        step(model, optimizer, number)
        update(model)
        twin.update(model)
        for i, mean in zip((0, 2), twin.means, strict=True):
            torch.testing.assert_close(average[i].to_dense(), mean)
            assert torch.equal(average[i].flat(), model[i].flat())
    assert len(optimizer.history) == 4
    x = torch.randn(5, 12, dtype=torch.float64)
    expected = F.linear(torch.tanh(F.linear(x, twin.means[0], average[0].bias)), twin.means[1], average[2].bias)
    torch.testing.assert_close(average(x), expected)


def test_swa_that_begins_after_evolutions_is_right():
    model, optimizer = pair()
    averaged = AveragedModel(model)
    for number in range(10):
        step(model, optimizer, number)
    seen = []
    for number in range(10, 20):
        step(model, optimizer, number)
        averaged.update_parameters(model)
        seen.append((model[0].flat(), model[0].to_dense().detach().clone()))
    kept = seen[-1][0]
    always = [place for place in kept.tolist() if all(place in flat for flat, _ in seen)]
    mean = torch.stack([dense.flatten()[always] for _, dense in seen]).mean(0)
    assert 10 < len(always) < len(kept)
    torch.testing.assert_close(averaged.module[0].to_dense().flatten()[always], mean)
    update_bn([torch.randn(2, 12, dtype=torch.float64)], averaged)
    averaged.load_state_dict(averaged.state_dict())


def test_an_average_that_begins_with_a_copy_of_the_parameters_takes_over_the_topology():
    model, optimizer = pair()
    average = copy.deepcopy(model)
    for number in range(6):
        step(model, optimizer, number)
    ema(average, model, decay=0.0)  # the buffers are not copied
    for number in range(6, 14):
        step(model, optimizer, number)
        ema(average, model, decay=0.5)
    assert_same(topologies(average), topologies(model))
    assert not torch.equal(average[0].values, model[0].values)
    torch.testing.assert_close(average[0].to_dense(), model[0].to_dense(), atol=0.3, rtol=0)


def test_swa_follows_gradual_pruning():
    model, optimizer = pair(GraNet(until=16, interval=INTERVAL, start_density=0.8))
    averaged = AveragedModel(model, use_buffers=True)
    for number in range(20):
        step(model, optimizer, number)
        averaged.update_parameters(model)
    assert_same(topologies(averaged.module), topologies(model))
    assert averaged.module[0].nnz == model[0].nnz < 0.5 * 12 * 16


def test_a_snapshot_stays_as_it_is():
    model, optimizer = pair()
    step(model, optimizer, 0)
    snapshot = copy.deepcopy(model)
    reloaded = copy.deepcopy(model)
    reloaded.load_state_dict(model.state_dict())
    before = copy.deepcopy(snapshot.state_dict())
    for number in range(1, 12):
        step(model, optimizer, number)
    assert_same(snapshot.state_dict(), before)
    assert_same(reloaded.state_dict(), before)
    reloaded.load_state_dict(model.state_dict())  # the best so far
    best = copy.deepcopy(reloaded.state_dict())
    for number in range(12, 20):
        step(model, optimizer, number)
    assert_same(reloaded.state_dict(), best)
    assert not torch.equal(model[0].flat(), reloaded[0].flat())


@pytest.mark.parametrize("convert", ["half", "float", "bfloat16"])
def test_a_snapshot_that_is_converted_stays_as_it_is(convert):
    model, optimizer = pair()
    snapshot, skeleton = copy.deepcopy(model), copy.deepcopy(model).to("meta")
    getattr(snapshot, convert)()
    before = copy.deepcopy(snapshot.state_dict())
    for number in range(6):
        step(model, optimizer, number)
    snapshot.double()
    for number in range(6, 14):
        step(model, optimizer, number)
    assert_same(getattr(snapshot, convert)().state_dict(), before)
    assert skeleton[0].values.is_meta


def test_an_average_in_more_precision_than_the_model_follows():
    model, optimizer = pair()
    model.float()
    average = copy.deepcopy(model).double()
    twin = DenseAverage(model, 0.9)
    for number in range(18):
        step(model, optimizer, number, torch.float32)
        data_ema(average, model)
        twin.update(model)
    for i, mean in zip((0, 2), twin.means, strict=True):
        assert average[i].values.dtype == torch.float64
        torch.testing.assert_close(average[i].to_dense(), mean.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["its own optimizer", "a copy of the pair"])
def test_a_copy_that_is_trained_goes_its_own_way(how):
    model, optimizer = pair()
    if how == "a copy of the pair":
        twin, its_optimizer = copy.deepcopy((model, optimizer))
        its_optimizer.param_groups[0]["lr"] = 0.0
    else:
        twin = copy.deepcopy(model)
        its_optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    alone = copy.deepcopy((twin, its_optimizer))
    for number in range(10):
        step(twin, its_optimizer, number)
        its_optimizer.zero_grad()
        step(model, optimizer, number)
    for number in range(10):
        step(*alone, number)
    assert_same(twin.state_dict(), alone[0].state_dict())


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("update", [ema, data_ema])
def test_an_average_begun_in_an_old_copy_is_refused(update, sync):
    model, optimizer = pair()
    average = copy.deepcopy(model)
    for number in range(6):
        step(model, optimizer, number)
    update(average, model)
    if sync:
        for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
    flat, values = topologies(model), model[0].values.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"copy of layer '0' that averages weights across an evolution. Copy the model"
    ):
        step(model, optimizer, 6)
    assert_same(topologies(model), flat)
    assert torch.equal(model[0].values, values), "refused before the step"
    del average
    step(model, optimizer, 6)


@pytest.mark.parametrize("reason", ["nothing dropped", "a rule that fails"])
def test_without_a_change_of_topology_no_copy_is_left_behind(reason):
    def failing(layer, count):
        raise KeyError("no places")

    nothing = SET(interval=INTERVAL, drop_fraction=0.0)
    model, optimizer = pair(nothing if reason == "nothing dropped" else Evolution(interval=None, grow=failing))
    average = copy.deepcopy(model)
    for number in range(6):
        step(model, optimizer, number)
    if reason == "a rule that fails":
        with pytest.raises(KeyError):
            optimizer.evolve()
    ema(average, model)
    step(model, optimizer, 6)


def test_averaging_indices_is_refused():
    model, optimizer = pair()
    averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    for number in range(2):  # the first update copies
        step(model, optimizer, number)
        averaged.update_parameters(model)
    with pytest.raises(
        RuntimeError, match=r"must leave indices as they are, got a copy of layer '0'.*use_buffers=False"
    ):
        step(model, optimizer, 2)
    with pytest.raises(ValueError, match="indices must be a topology"):
        averaged(torch.randn(2, 12, dtype=torch.float64))


def test_trim_takes_the_average_along():
    model, optimizer = pair(Static())
    averaged = AveragedModel(model)
    for number in range(3):
        step(model, optimizer, number)
        averaged.update_parameters(model)
    trim(model, 0.2)
    assert_same(topologies(averaged.module), topologies(model))
    averaged.update_parameters(model)


def test_a_copy_outlives_its_original():
    model, optimizer = pair()
    average = copy.deepcopy(model)
    ema(average, model, 0.5)
    del model, optimizer
    assert average(torch.randn(2, 12, dtype=torch.float64)).shape == (2, 4)
    assert isinstance(copy.deepcopy(average)[0].values, nn.Parameter)
