"""Every optimizer, many steps with evolution in between, against a dense network whose dropped weights are zero."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

from sparsify import GMP, SET, Evolution, GraNet, RigL, SparseLinear, coin, sparsify
from sparsify.evolution import (
    across_layers,
    by_gradient_among,
    feeding_units,
    mixed,
    saliency,
    sparing_units,
    uniformly,
)
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.twins import DenseTwin, batches, step


class Lion(torch.optim.Optimizer):
    """A third-party optimizer that calls super().step() and keeps its own buffer."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.add_((first * momentum + (1 - first) * p.grad).sign(), alpha=-group["lr"])
                momentum.mul_(second).add_(p.grad, alpha=1 - second)
        return loss


class AdamChild(Adam):
    """Its step() runs the hooks of Adam's and its own."""

    def step(self, closure=None):
        return super().step(closure)


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, 0.1),
    "momentum": lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: SGD(p, 0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, 0.01),
    "adam-child": lambda p: AdamChild(p, 0.01),
    "adam-amsgrad": lambda p: Adam(p, 0.01, amsgrad=True, weight_decay=0.01),
    "adam-foreach": lambda p: Adam(p, 0.01, foreach=True),
    "adam-fused": lambda p: Adam(p, 0.01, fused=True, amsgrad=True),
    "adamw": lambda p: AdamW(p, 0.01),
    "adamw-amsgrad": lambda p: AdamW(p, 0.01, amsgrad=True),
    "adamw-fused": lambda p: AdamW(p, 0.01, fused=True),
    "nadam": lambda p: NAdam(p, 0.01),
    "radam": lambda p: RAdam(p, 0.01),
    "adamax": lambda p: Adamax(p, 0.01),
    "rmsprop": lambda p: RMSprop(p, 0.01),
    "rmsprop-centered": lambda p: RMSprop(p, 0.01, centered=True, momentum=0.9),
    "adagrad": lambda p: Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "adagrad-fused": lambda p: Adagrad(p, 0.05, fused=True),
    "adadelta": lambda p: Adadelta(p, 1.0),
    "rprop": lambda p: Rprop(p, 0.01),
    "asgd": lambda p: ASGD(p, 0.05, t0=3),
    "lbfgs": lambda p: LBFGS(p, 0.5, max_iter=3),
    "lion": lambda p: Lion(p),
}
FRESH = {"rprop": {"step_size": 0.01}, "adagrad": {"sum": 0.1}}
INTERVAL = 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_as_the_dense_twin_does(name):
    make = OPTIMIZERS[name]
    model = mlp(12, 16, 4, dtype=torch.float64)
    model, optimizer = sparsify(model, make(model.parameters()), 0.35, evolution=SET(interval=INTERVAL), seed=3)
    twin = DenseTwin(model, make, FRESH.get(name, {}))
    for number, batch in enumerate(batches(), 1):
        torch.testing.assert_close(step(model, optimizer, batch), twin.step(batch))
        if number % INTERVAL == 0:
            twin.follow()
        for layer, weight in twin.pairs:
            torch.testing.assert_close(layer.to_dense(), weight * twin.active[weight])
    assert [record.step for record in optimizer.history] == [4, 8, 12, 16, 20]
    for layer, weight in twin.pairs:
        for key, buffer in optimizer.state.get(layer.values, {}).items():
            if torch.is_tensor(buffer) and buffer.shape == layer.values.shape:
                torch.testing.assert_close(buffer, twin.optimizer.state[weight][key].flatten()[layer.flat()])


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "lbfgs")])
def test_survivors_keep_values_gradients_and_buffers_and_regrown_start_fresh(name):
    model = mlp(12, 16, 4, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    model, optimizer = sparsify(model, optimizer, 0.35, evolution=SET(interval=None), seed=3)
    for batch in batches(6):
        step(model, optimizer, batch)
    before = {}
    for layer in (model[0], model[2]):
        vectors = {"value": layer.values, "grad": layer.values.grad} | optimizer.state[layer.values]
        vectors = {key: v.clone() for key, v in vectors.items() if torch.is_tensor(v) and v.shape == layer.values.shape}
        before[layer] = layer.flat().tolist(), vectors
        assert len(vectors) > 2
    optimizer.evolve()
    for layer, (flat, vectors) in before.items():
        now = layer.flat().tolist()
        survivors = set(flat) & set(now)
        assert 0 < len(survivors) < len(now) == len(flat)
        for key, old in vectors.items():
            new = {"value": layer.values, "grad": layer.values.grad}.get(key, optimizer.state[layer.values].get(key))
            for place, value in zip(now, new.tolist(), strict=True):
                if place in survivors:
                    assert value == old[flat.index(place)], key
                else:
                    assert value == FRESH.get(name, {}).get(key, 0.0), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_resumed_from_a_checkpoint_is_bit_exact(name):
    evolution = SET(interval=INTERVAL, drop_fraction=lambda step: 0.5 - step / 100)

    def fresh(seed):
        torch.manual_seed(seed)
        model = mlp(12, 16, 4)  # in float64 plain NAdam does not resume exactly: torch casts its mu_product
        return sparsify(model, OPTIMIZERS[name](model.parameters()), 0.35, evolution=evolution, seed=seed)

    def finish(model, optimizer):
        for batch in batches(dtype=torch.float32)[10:]:
            step(model, optimizer, batch)
        return model.state_dict(), optimizer.state_dict()

    model, optimizer = fresh(1)
    for batch in batches(dtype=torch.float32)[:10]:
        step(model, optimizer, batch)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = finish(model, optimizer)
    for order in ("model", "optimizer"), ("optimizer", "model"):
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
        resumed = dict(zip(("model", "optimizer"), fresh(2), strict=True))
        for part in order:
            resumed[part].load_state_dict(checkpoint[part])
        assert_same(finish(**resumed), expected)


@pytest.mark.parametrize("name", ["momentum", "adamw-fused", "lbfgs", "adam-child"])
@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_copy_of_the_pair_trains_on_as_the_original(name, how):
    model = mlp(12, 16, 4, dtype=torch.float64)
    pair = sparsify(model, OPTIMIZERS[name](model.parameters()), 0.35, evolution=SET(interval=INTERVAL))
    for batch in batches()[:10]:
        step(*pair, batch)
    if how == "deepcopy":
        other = copy.deepcopy(pair)
    else:
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other[0][0].values is not pair[0][0].values
    results = []
    for model, optimizer in (pair, other):
        for batch in batches()[10:]:
            step(model, optimizer, batch)
        results.append((model.state_dict(), optimizer.state_dict()))
    assert_same(*results)
    assert [record.step for record in other[1].history] == [4, 8, 12, 16, 20]


def test_dropout_free_float32_and_mixed_layers_train_to_a_lower_loss():
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(40, 32), nn.LayerNorm(32), nn.Linear(32, 4))
    model, optimizer = sparsify(model, AdamW(model.parameters(), 0.01), 0.2, evolution=SET(interval=5), skip=["4"])
    inputs, labels = torch.randn(64, 1, 12), torch.randint(4, (64,))
    losses = [step(model, optimizer, (inputs, labels)).item() for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    assert isinstance(model[2], SparseLinear)
    assert model[2].nnz == round(0.2 * 40 * 32)


def test_adafactor_trains_a_vector_of_values():
    model = mlp(12, 16, 4, dtype=torch.float64)
    model, optimizer = sparsify(model, Adafactor(model.parameters(), 0.05), 0.35, evolution=SET(interval=INTERVAL))
    losses = [step(model, optimizer, batches(1)[0]).item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert len(optimizer.history) == 10


class EveryOther:
    """An interval with state of its own, as a user may write one."""

    def __init__(self):
        self.asked = 0

    def __call__(self, step):
        self.asked += 1
        return self.asked % 4 == 0

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


@pytest.mark.parametrize(
    "evolution",
    [
        lambda: RigL(interval=4, until=18),
        lambda: RigL(interval=EveryOther()),
        lambda: RigL(interval=coin(0.4), grow=mixed(by_gradient_among(3), uniformly, share=0.5)),
        lambda: Evolution(interval=4, drop=sparing_units(saliency), scope=across_layers, grow=feeding_units()),
        lambda: GMP(until=17, interval=4),
        lambda: GraNet(until=18, prune_until=14, interval=4, start_density=0.8),
    ],
)
@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")])
def test_every_algorithm_resumes_bit_for_bit(evolution, order):
    def fresh(seed):
        torch.manual_seed(seed)
        model = mlp(12, 16, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return sparsify(model, optimizer, 0.3, evolution=evolution(), seed=seed)

    def train(model, optimizer, steps):
        for number in steps:
            torch.manual_seed(number)
            optimizer.zero_grad()
            model(torch.randn(8, 12)).square().sum().backward()
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    for stop in 3, 4, 9:  # just before an evolution, just after one, in the middle of pruning
        model, optimizer = fresh(1)
        train(model, optimizer, range(stop))
        checkpoint = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
        expected = train(model, optimizer, range(stop, 20))
        assert optimizer.history[-1].step > stop
        checkpoint.seek(0)
        loaded = torch.load(checkpoint, weights_only=True)
        resumed = dict(zip(("model", "optimizer"), fresh(2), strict=True))
        for part in order:
            resumed[part].load_state_dict(loaded[part])
        assert_same(train(**resumed, steps=range(stop, 20)), expected)
        pair = copy.deepcopy(fresh(1))
        train(*pair, range(stop))
        assert_same(train(*copy.deepcopy(pair), range(stop, 20)), expected)
