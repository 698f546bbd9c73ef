"""Values of other connections, written by parameter name, are warned of; what people write rightly is not."""

import copy
import pickle
import warnings

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_ema import ExponentialMovingAverage

from sparsify import GMP, SET, GraNet, RigL, Static, sparsify, trim
from sparsify._src import kernels
from sparsify._src.native import library
from tests.support.comparing import assert_same
from tests.support.marks import needs_native
from tests.support.models import mlp
from tests.support.shadows import Shadow, by_name, data_copy

OTHERS = r"values of '0', '2' were overwritten with such of other connections"
SIZES = 20, 40, 10


def pair(evolution=SET(interval=4), lr=0.1, seed=3, make=torch.optim.SGD, **options):  # noqa: B008
    torch.manual_seed(1)
    model = mlp(*SIZES)
    return sparsify(model, make(model.parameters(), lr=lr, **options), 0.35, evolution=evolution, seed=seed)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, SIZES[0], generator=generator), torch.arange(16) % SIZES[-1]


def step(model, optimizer, number):
    x, y = batch(number)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def train(model, optimizer, first, last):
    for number in range(first, last):
        step(model, optimizer, number)


def copy_(model, saved):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(saved[name])


def data_assign(model, saved):
    for name, p in model.named_parameters():
        p.data = saved[name].clone()


def as_vector(model, saved):
    vector_to_parameters(parameters_to_vector(saved.values()), model.parameters())


def in_place_state(model, saved):
    """Of parameters only, as some trainers restore."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in saved:
            tensor.data.copy_(saved[name])


WRITES = [copy_, data_copy, data_assign, as_vector, in_place_state]


@pytest.fixture(params=[pytest.param("library", marks=needs_native), "no library"])
def with_and_without_library(request, monkeypatch):
    if request.param == "no library":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kernels.dispatch._warn_of_slowness("aten")
        monkeypatch.setattr(library, "LIBRARY", None)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("evolutions", [1, 2, 5])
def test_values_saved_by_name_before_evolutions_are_warned_of_at_the_next_step(write, evolutions):
    model, optimizer = pair()
    train(model, optimizer, 0, 3)
    best = by_name(model)
    train(model, optimizer, 3, 4 * evolutions + 2)
    write(model, best)
    with pytest.warns(UserWarning, match=OTHERS) as seen:
        step(model, optimizer, 50)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert "state_dict()" in str(seen[0].message)
    assert "follow" in str(seen[0].message)
    train(model, optimizer, 51, 60)


@pytest.mark.parametrize(
    "evolution", [SET(interval=4, drop_fraction=0.05), RigL(interval=4, drop_fraction=0.3), SET(interval=4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_algorithm_and_precision(evolution, dtype, with_and_without_library):
    model, optimizer = pair(evolution)
    model.to(dtype)
    best = by_name(model)
    run = lambda *numbers: [  # noqa: E731
        (optimizer.zero_grad(), F.cross_entropy(model(batch(n)[0].to(dtype)).float(), batch(n)[1]).backward())
        and optimizer.step()
        for n in range(*numbers)
    ]
    run(0, 10)
    data_copy(model, best)
    with pytest.warns(UserWarning, match="overwritten with such of other connections"):
        run(10, 11)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grad", [True, False])
def test_what_is_evaluated_in_between_is_warned_of_when_it_is(write, grad):
    """Written, evaluated and written back: at the next step nothing of it is to be seen."""
    model, optimizer = pair()
    train(model, optimizer, 0, 3)
    best = by_name(model)
    train(model, optimizer, 3, 10)
    kept = by_name(model)
    with torch.no_grad():
        model(batch(0)[0])
    write(model, best)
    model.eval()
    with pytest.warns(UserWarning, match=OTHERS), torch.set_grad_enabled(grad):
        model(batch(0)[0])
    write(model, kept)
    model.train()
    train(model, optimizer, 10, 12)


def test_it_is_noticed_in_long_evaluations():
    model, optimizer = pair()
    best = by_name(model)
    train(model, optimizer, 0, 10)
    model.eval()
    with torch.no_grad():
        for _ in range(200):
            model(batch(0)[0])
        data_copy(model, best)
        with pytest.warns(UserWarning, match="overwritten"):
            [model(batch(0)[0]) for _ in range(16)]


@pytest.mark.parametrize(("decay", "after"), [(0.9, 2), (0.9, 14), (0.99, 3), (0.5, 5)])
def test_an_average_by_name_across_evolutions_is_warned_of_however_small_its_part_from_before(decay, after):
    model, optimizer = pair(SET(interval=20))
    ema = Shadow(model, decay)
    for number in range(20 + after):
        step(model, optimizer, number)
        ema.update()
    ema.apply_shadow()
    model.eval()
    with pytest.warns(UserWarning, match="were overwritten"):
        model(batch(0)[0])
    ema.restore()
    model.train()
    train(model, optimizer, 90, 92)


def test_torch_emas_averages_across_evolutions_are_warned_of():
    model, optimizer = pair()
    ema = ExponentialMovingAverage(model.parameters(), decay=0.9)
    for number in range(10):
        step(model, optimizer, number)
        ema.update()
    with ema.average_parameters(), pytest.warns(UserWarning, match="were overwritten"), torch.no_grad():
        model(batch(0)[0])
    train(model, optimizer, 10, 11)
    ema.copy_to(model.parameters())
    with pytest.warns(UserWarning, match="were overwritten"):
        step(model, optimizer, 11)


def test_averages_by_name_that_begin_after_the_last_evolution_are_right():
    model, optimizer = pair(SET(interval=4, until=8))
    train(model, optimizer, 0, 10)
    shadow, ema = Shadow(model, 0.9), ExponentialMovingAverage(model.parameters(), decay=0.9)
    for number in range(10, 30):
        step(model, optimizer, number)
        shadow.update()
        ema.update()
        trained = by_name(model)
        shadow.apply_shadow()
        with torch.no_grad():
            averaged = model(batch(0)[0])
        shadow.restore()
        assert_same(by_name(model), trained)
        with ema.average_parameters(), torch.no_grad():
            model(batch(0)[0])
        assert_same(by_name(model), trained)
    served = sparsify(mlp(*SIZES), None, start=model.state_dict())[0]
    served.load_state_dict({**model.state_dict(), **shadow.shadow})
    assert torch.equal(served(batch(0)[0]), averaged)


def clamp(model):
    for p in model.parameters():
        p.data.clamp_(-0.05, 0.05)


def project(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5 / p.norm())


def nonnegative(model):
    for p in model.parameters():
        p.data.clamp_(min=0)


def noise(model):
    for p in model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.5 * float(p.data.std()))


def round_(model):
    for p in model.parameters():
        p.data = (p.data * 8).round() / 8


def signs(model):
    for p in model.parameters():
        p.data.sign_()


def shrink_and_perturb(model):
    for p in model.parameters():
        p.data.mul_(0.4).add_(torch.randn_like(p), alpha=0.2 * float(p.data.std()))


def magnitude_pruned(model):
    for p in model.parameters():
        p.data[p.data.abs() < p.data.abs().median()] = 0


def other_device_or_dtype(model):
    model.double().float().half().float()


def loaded(model):
    torch.manual_seed(5)
    other = sparsify(mlp(*SIZES), None, 0.35, seed=11)[0]
    model.load_state_dict(other.state_dict())


def loaded_in_place(model):
    torch.manual_seed(5)
    other = sparsify(mlp(*SIZES), None, 0.35, seed=11)[0]
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        mine.copy_(theirs)


def reset(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def trimmed(model):
    trim(model, 0.2)


def shared(model):
    model.share_memory()


@pytest.mark.parametrize(
    "write",
    [
        clamp,
        project,
        nonnegative,
        noise,
        round_,
        signs,
        shrink_and_perturb,
        magnitude_pruned,
        other_device_or_dtype,
        loaded,
        loaded_in_place,
        reset,
        trimmed,
        shared,
    ],
)
def test_what_people_write_rightly_is_silent(write):
    model, optimizer = pair()
    for number in range(14):
        step(model, optimizer, number)
        if number in (3, 4, 7, 9, 12):  # just after evolutions too
            write(model)
            model(batch(0)[0])
            model.eval()
            model(batch(0)[0])
            model.train()
            step(model, optimizer, 100 + number)


@pytest.mark.parametrize("drop", [0.02, 0.3])
def test_values_saved_by_name_since_the_last_evolution_may_come_back(drop):
    model, optimizer = pair(SET(interval=20, drop_fraction=drop))
    train(model, optimizer, 0, 20)
    best = by_name(model)
    train(model, optimizer, 20, 39)
    for write in WRITES:
        write(model, best)
        model.eval()
        model(batch(0)[0])
        model.train()
    train(model, optimizer, 39, 42)


@pytest.mark.parametrize("how", ["exchanged", "copied"])
@pytest.mark.parametrize("kind", ["AveragedModel", "timm"])
def test_averages_that_evolve_along_may_be_exchanged_with_the_model(how, kind):
    """Even where the average is far from the model, as one with much decay is."""
    model, optimizer = pair(lr=1.0)
    if kind == "timm":
        averaged = ModelEmaV3(model, decay=0.99)
        update = averaged.update
    else:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        update = averaged.update_parameters
    for number in range(20):
        step(model, optimizer, number)
        update(model)
        kept = by_name(model)
        for p, q in zip(model.parameters(), averaged.module.parameters(), strict=True):
            if how == "exchanged":
                p.data, q.data = q.data.clone(), p.data.clone()
            else:
                p.data.copy_(q.data)
        with torch.no_grad():
            assert torch.isfinite(model(batch(0)[0])).all()
        if how == "exchanged":
            for p, q in zip(model.parameters(), averaged.module.parameters(), strict=True):
                p.data, q.data = q.data.clone(), p.data.clone()
        else:
            data_copy(model, kept)
    assert len(optimizer.history) == 5


@pytest.mark.parametrize("evolution", [Static(), SET(interval=100)])
def test_without_an_evolution_anything_may_be_written(evolution):
    model, optimizer = pair(evolution)
    first = by_name(model)
    train(model, optimizer, 0, 10)
    data_copy(model, first)
    train(model, optimizer, 10, 11)
    for p in model.parameters():
        nn.init.normal_(p)
    train(model, optimizer, 11, 12)


@pytest.mark.parametrize("evolution", [GMP(until=16, interval=4), GraNet(until=16, interval=4, start_density=0.8)])
def test_values_of_another_length_are_an_error_at_the_next_step(evolution):
    model, optimizer = pair(evolution)
    best = by_name(model)
    train(model, optimizer, 0, 6)
    data_assign(model, best)
    with pytest.raises(ValueError, match="indices must be a topology, got what something else has written"):
        step(model, optimizer, 6)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="one entry for each of the"):
        optimizer.step()
    fresh = pair(evolution, seed=4)[0]
    model.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("shape", [(3,), (4, 5), (0,), ()])
def test_no_data_makes_it_crash(shape):
    model, optimizer = pair()
    train(model, optimizer, 0, 5)
    model[0].values.data = torch.zeros(shape)
    for _ in range(2):
        with pytest.raises(ValueError, match="values"):
            optimizer.step()
    with pytest.raises(ValueError, match="values"):
        model(batch(0)[0])
    model[2].values.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="values"):
        optimizer.step()


def test_another_parameter_in_the_layers_place_is_an_error_at_the_next_step():
    model, optimizer = pair()
    train(model, optimizer, 0, 2)
    model[0].values = nn.Parameter(model[0].values.detach().clone())
    with pytest.raises(ValueError, match=r"values must stay the parameter .* got another in layer '0'"):
        step(model, optimizer, 2)


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_an_initialisation_that_takes_values_for_a_bias_is_warned_of_at_the_first_step(value):
    model, optimizer = pair()
    for p in model.parameters():
        nn.init.xavier_uniform_(p) if p.dim() > 1 else nn.init.constant_(p, value)
    with pytest.warns(UserWarning, match=r"All values of '0', '2' are the same number.*before sparsify\(\)"):
        step(model, optimizer, 0)
    train(model, optimizer, 1, 3)


def test_initialisations_that_are_meant_are_silent():
    torch.manual_seed(0)
    model = mlp(*SIZES)
    nn.init.zeros_(model[2].weight)  # before sparsify
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.35, evolution=SET(interval=4))
    for p in model.parameters():
        nn.init.uniform_(p, -0.1, 0.1)
    train(model, optimizer, 0, 3)
    model, optimizer = pair()
    state = model.state_dict()
    state["0.values"] = torch.zeros_like(state["0.values"])
    model.load_state_dict(state)
    train(model, optimizer, 0, 3)


def test_copied_and_pickled_pairs_watch_for_themselves():
    model, optimizer = pair()
    best = by_name(model)
    train(model, optimizer, 0, 6)
    twins = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, 6, 14)
    for twin, own in twins:
        train(twin, own, 6, 14)
        assert_same(twin.state_dict(), model.state_dict())
        data_copy(twin, best)
        with pytest.warns(UserWarning, match="were overwritten"):
            step(twin, own, 14)
    step(model, optimizer, 14)


def test_values_written_after_evolve_was_called_are_noticed():
    model, optimizer = pair(SET(interval=1000))
    step(model, optimizer, 0)
    best = by_name(model)
    optimizer.evolve()
    data_copy(model, best)
    with pytest.warns(UserWarning, match="overwritten"):
        step(model, optimizer, 1)
