"""Optimizers that hold optimizers: whatever any of them keeps moves with the topology."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import pytorch_optimizer
import schedulefree
import torch
from timm.optim.adahessian import Adahessian
from timm.optim.kron import Kron
from timm.optim.lookahead import Lookahead as TimmLookahead
from torch import nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adagrad, AdamW

from sparsify import GMP, SET, GraNet, RigL, SparseOptimizer, plan, sparsify, trim
from sparsify._src.training import holders
from sparsify.evolution import Evolution, saliency
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.twins import batches
from tests.support.wrappers import SAM, ById, InLists, Lookahead, TwoCalls

MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)


def multiple(params):
    """Two optimizers, each for some of the parameters, stepped as one."""
    params = list(params)

    class Both:
        def __init__(self, *optimizers):
            self.optimizers = list(optimizers)
            self.param_groups = [group for each in optimizers for group in each.param_groups]

        def step(self, closure=None):
            with torch.enable_grad() if closure else nullcontext():
                loss = closure() if closure else None
            for each in self.optimizers:
                each.step()
            return loss

        def zero_grad(self, set_to_none=True):
            for each in self.optimizers:
                each.zero_grad(set_to_none)

    return Both(MOMENTUM(params[:2]), AdamW(params[2:], lr=0.01))


class Separate(torch.optim.Optimizer):
    """It and the one inside have param groups of their own."""

    def __init__(self, params):
        params = list(params)
        super().__init__([{"params": params[:2]}, {"params": params[2:]}], {"lr": 0.1})
        self.inside = MOMENTUM(params)

    def step(self, closure=None):
        return self.inside.step(closure)


def schedule_free(params):
    optimizer = schedulefree.ScheduleFreeWrapper(SGD(params, lr=0.1))
    optimizer.train()
    return optimizer


def schedule_free_adam(params):
    optimizer = schedulefree.AdamWScheduleFree(params, lr=0.01)
    optimizer.train()
    return optimizer


WRAPPERS = {
    "SAM": lambda p: SAM(p, SGD, lr=0.1, momentum=0.9),
    "SAM of AdamW": lambda p: SAM(p, AdamW, lr=0.01),
    "SAM in two calls": lambda p: TwoCalls(p, SGD, lr=0.1, momentum=0.9),
    "pytorch_optimizer's SAM": lambda p: pytorch_optimizer.SAM(p, SGD, lr=0.1, momentum=0.9),
    "Lookahead": lambda p: Lookahead(MOMENTUM(p)),
    "Lookahead of Lookahead": lambda p: Lookahead(Lookahead(MOMENTUM(p), k=2)),
    "timm's Lookahead": lambda p: TimmLookahead(MOMENTUM(p), k=3),
    "pytorch_optimizer's Lookahead": lambda p: pytorch_optimizer.Lookahead(AdamW(p, lr=0.01), k=3),
    "in lists": lambda p: InLists(MOMENTUM(p)),
    "by id": lambda p: ById(AdamW(p, lr=0.01)),
    "two at once": multiple,
    "separate groups": Separate,
    "schedule-free around SGD": schedule_free,
    "schedule-free AdamW": schedule_free_adam,
    "AggMo, nested buffers": lambda p: pytorch_optimizer.AggMo(p, lr=0.01),
}
TWICE = ("SAM in two calls", "pytorch_optimizer's SAM")
INTERVAL, STEPS = 4, 18


def step(model, optimizer, batch, hold=lambda: None):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        hold()
        return loss

    if type(getattr(optimizer, "__wrapped__", optimizer)) is TwoCalls:
        closure()
        optimizer.first_step(zero_grad=True)
        closure()
        optimizer.second_step(zero_grad=True)
    elif isinstance(optimizer, pytorch_optimizer.SAM):
        closure()
        optimizer.step(closure)
    else:
        optimizer.step(closure)


def tensors_of(value, weight, seen):
    """All tensors of the shape of `weight` that an optimizer keeps for it, found in another way than the code's."""
    if id(value) in seen or value is weight:
        return []
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        return [value] if value.shape == weight.shape else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_of(part, weight, seen)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        return tensors_of({k: v for k, v in vars(value).items() if "hooks" not in k}, weight, seen)
    return []


@pytest.mark.parametrize("name", WRAPPERS)
def test_trains_as_the_dense_twin_does(name):
    make = WRAPPERS[name]
    model = mlp(12, 16, 4, dtype=torch.float64)
    model, optimizer = sparsify(model, make(model.parameters()), 0.35, evolution=SET(interval=INTERVAL), seed=3)
    dense = mlp(12, 16, 4, dtype=torch.float64)
    layers = [(model[i], dense[i]) for i in (0, 2)]
    active = {}
    for sparse, linear in layers:
        linear.weight.data.copy_(sparse.to_dense())
        linear.bias.data.copy_(sparse.bias.data)
        active[linear.weight] = sparse.to_dense() != 0
    plain = make(dense.parameters())

    def hold():
        for weight, places in active.items():
            weight.grad *= places

    for number, batch in enumerate(batches(STEPS), 1):
        step(model, optimizer, batch)
        step(dense, plain, batch, hold)
        assert len(optimizer.history) == number // INTERVAL
        if number % INTERVAL == 0:
            for sparse, linear in layers:
                weight, before = linear.weight, active[linear.weight]
                now = torch.zeros(sparse.shape, dtype=torch.bool).view(-1).index_fill(0, sparse.flat(), True)
                now = active[weight] = now.view(sparse.shape)
                assert (now != before).any()
                for tensor in [weight.data, *tensors_of(plain, weight, {})]:
                    tensor[before ^ now] = 0
        for sparse, linear in layers:
            torch.testing.assert_close(sparse.to_dense(), linear.weight * active[linear.weight])


@pytest.mark.parametrize(
    "evolution",
    [GMP(until=16, interval=4), GraNet(until=16, interval=4), RigL(interval=4)],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("name", [*WRAPPERS, "LBFGS"])
def test_every_algorithm_goes_with_every_wrapper(name, evolution):
    model = mlp(12, 16, 4, dtype=torch.float64)
    make = WRAPPERS.get(name, partial(LBFGS, lr=0.5, max_iter=3))
    model, optimizer = sparsify(model, make(model.parameters()), 0.2, evolution=evolution)
    for batch in batches():
        step(model, optimizer, batch)
    assert len(optimizer.history) == (5 if isinstance(evolution, RigL) else 4)
    assert [model[i].nnz for i in (0, 2)] == [row.nnz for row in plan(mlp(12, 16, 4), 0.2).layers]
    assert {len(record.dropped) for record in optimizer.history} == {2}


def pair(make, evolution=SET(interval=INTERVAL), density=0.3, seed=3):  # noqa: B008
    torch.manual_seed(seed)
    model = mlp(12, 16, 4, dtype=torch.float64)
    return sparsify(model, make(model.parameters()), density, evolution=evolution, seed=seed)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if "schedule-free" not in name])
def test_what_it_keeps_of_dense_training_is_carried_over_at_the_connections(name):
    model = mlp(12, 16, 4, dtype=torch.float64)
    optimizer = WRAPPERS[name](model.parameters())
    for batch in batches(5):
        step(model, optimizer, batch)
    weight, kept = model[0].weight, copy.deepcopy(tensors_of(optimizer, model[0].weight, {}))
    assert kept
    sparse, _ = sparsify(model, optimizer, 0.3, start="magnitude")
    flat = sparse[0].flat()
    expected = [tensor.flatten()[flat] for tensor in kept if tensor.shape == (16, 12)]
    found = tensors_of(optimizer, sparse[0].values, {})
    assert all(any(torch.equal(one, other) for other in found) for one in expected)
    assert not tensors_of(optimizer, torch.empty(weight.shape), {})


def test_slow_weights_are_scaled_as_the_weights_are():
    model, optimizer = pair(WRAPPERS["in lists"])
    assert torch.equal(optimizer.slow[0][0], model[0].values)
    model, optimizer = pair(WRAPPERS["pytorch_optimizer's Lookahead"])
    torch.testing.assert_close(optimizer.state[model[0].values]["slow_params"], model[0].values.detach())


def test_an_optimizer_made_around_the_wrapped_one_moves_too():
    model, base = pair(MOMENTUM)
    around = Lookahead(base, k=1000)
    for batch in batches(INTERVAL - 1):
        step(model, around, batch)
    slow = around.state[model[0].values]["slow_param"]
    before = dict(zip(model[0].flat().tolist(), slow.tolist(), strict=True))
    step(model, around, batches(1)[0])
    assert len(base.history) == 1
    now = dict(zip(model[0].flat().tolist(), around.state[model[0].values]["slow_param"].tolist(), strict=True))
    assert now != before
    assert now == {place: before.get(place, 0.0) for place in now}


def test_the_original_may_be_stepped_too():
    model = mlp(12, 16, 4, dtype=torch.float64)
    original = SAM(model.parameters(), SGD, lr=0.1, momentum=0.9)
    model, optimizer = sparsify(model, original, 0.3, evolution=SET(interval=2))
    for batch in batches(6):
        step(model, original, batch)
    assert [record.step for record in optimizer.history] == [2, 4, 6]


@pytest.mark.parametrize(
    "name", ["SAM", "timm's Lookahead", "pytorch_optimizer's Lookahead", "schedule-free around SGD"]
)
def test_training_resumed_in_a_new_process_is_bit_exact(name):
    # SAM's own state dict leaves out what the optimizer inside keeps
    make = partial(SAM, base=SGD, lr=0.1) if name == "SAM" else WRAPPERS[name]
    model, optimizer = pair(make)
    for batch in batches(10):
        step(model, optimizer, batch)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, resumed = pair(make, seed=4)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for batch in batches()[10:]:
        step(model, optimizer, batch)
        step(other, resumed, batch)
    assert_same(other.state_dict(), model.state_dict())
    assert len(resumed.history) == len(optimizer.history) == 5


def test_buffers_that_a_state_dict_does_not_bring_start_afresh_where_they_are_of_another_topology():
    model, optimizer = pair(WRAPPERS["SAM"])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for batch in batches(2):
        step(model, optimizer, batch)
    momentum = optimizer.base_optimizer.state[model[0].values]["momentum_buffer"]
    same = momentum.clone()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert torch.equal(momentum, same)  # of the same topology: as SAM would have it
    for batch in batches(INTERVAL + 1):
        step(model, optimizer, batch)
    assert momentum.any()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert not momentum.any()
    step(model, optimizer, batches(1)[0])


def test_a_state_dict_of_its_own_format_that_does_not_fit_changes_nothing():
    make = WRAPPERS["pytorch_optimizer's Lookahead"]
    model, optimizer = pair(make)
    for batch in batches(3):
        step(model, optimizer, batch)
    theirs = pair(make, density=0.5)[1].state_dict()
    theirs["sparsify"] = optimizer.state_dict()["sparsify"]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"vectors of the \d+ connections of layer '0', got"):
        optimizer.load_state_dict(theirs)
    assert_same(optimizer.state_dict(), before)


@pytest.mark.parametrize("name", ["SAM", "in lists", "timm's Lookahead", "pytorch_optimizer's Lookahead"])
def test_trimming_keeps_what_all_of_them_keep_of_the_survivors(name):
    model, optimizer = pair(WRAPPERS[name])
    for batch in batches(6):
        step(model, optimizer, batch)
    layer = model[0]
    flat, before = layer.flat(), [tensor.clone() for tensor in tensors_of(optimizer.__wrapped__, layer.values, {})]
    trim(model, 0.5, optimizer)
    position = torch.searchsorted(flat, layer.flat())
    found = tensors_of(optimizer.__wrapped__, layer.values, {})
    assert len(found) == len(before) > 0
    assert_same(found, [tensor[position] for tensor in before])
    step(model, optimizer, batches(1)[0])


@pytest.mark.parametrize("name", [*WRAPPERS, "Adagrad", "LBFGS"])
def test_state_of_another_topology_starts_afresh_whoever_keeps_it(name):
    others = {"Adagrad": partial(Adagrad, lr=0.05), "LBFGS": partial(LBFGS, lr=0.5, max_iter=3)}
    model, optimizer = pair(others.get(name) or WRAPPERS[name])
    for batch in batches(3):
        step(model, optimizer, batch)
    trim(model, 0.5)
    with pytest.warns(UserWarning, match="starts afresh"):
        step(model, optimizer, batches(1)[0])
    kept = {id(layer.values): layer.nnz for layer in (model[0], model[2])}
    for tensor, parameter, _ in holders.buffers(optimizer):
        assert id(parameter) not in kept or tensor.numel() in (1, kept[id(parameter)])
    step(model, optimizer, batches(1)[0])


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", ["Adahessian", "Kron"])
def test_known_ones_that_are_not_elementwise_are_refused_by_name(name):
    model = mlp(12, 16, 4)
    before = copy.deepcopy(model.state_dict())
    make = {"Adahessian": Adahessian, "Kron": Kron}[name]
    with pytest.raises(TypeError, match=f"optimizer must work elementwise, got {name}"):
        sparsify(model, make(model.parameters()), 0.3)
    with pytest.raises(TypeError, match=f"optimizer must work elementwise, got {name}"):
        sparsify(model, Lookahead(make(model.parameters())), 0.3)
    assert_same(model.state_dict(), before)


class Elsewhere(SGD):
    """Keeps a buffer where it cannot be told for which weight."""

    def __init__(self, params, at_once):
        super().__init__(params, lr=0.1)
        self.bag, self.first = {}, self.param_groups[0]["params"][0]
        if at_once:
            self.bag["weight of the first layer"] = self.first.detach().clone()

    def step(self, closure=None):
        loss = super().step(closure)
        self.bag["weight of the first layer"] = self.first.detach().clone()
        return loss


def test_a_buffer_of_which_it_cannot_be_told_whose_it_is_is_refused():
    model = mlp(12, 16, 4, dtype=torch.float64)
    optimizer = Elsewhere(model.parameters(), at_once=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=r"got Elsewhere with 'weight of the first layer' of shape \(16, 12\)"):
        sparsify(model, optimizer, 0.3)
    assert_same(model.state_dict(), before)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight
    model, optimizer = pair(partial(Elsewhere, at_once=False), SET(interval=1))
    assert optimizer.first is model[0].values
    with pytest.raises(TypeError, match=r"optimizer must keep under a weight what belongs to it"):
        step(model, optimizer, batches(1)[0])
    assert not optimizer.history


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_call_that_fails_leaves_all_optimizers_as_they_were(name, monkeypatch):
    model = mlp(12, 16, 4, dtype=torch.float64)
    optimizer = WRAPPERS[name](model.parameters())
    for batch in batches(4):
        step(model, optimizer, batch)
    kept = [copy.deepcopy(holders.buffers(optimizer)), copy.deepcopy(model.state_dict())]
    monkeypatch.setattr(SparseOptimizer, "__init__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparsify(model, optimizer, 0.3)
    assert_same(
        [[(b.tensor, b.key) for b in holders.buffers(optimizer)], model.state_dict()],
        [[(b.tensor, b.key) for b in kept[0]], kept[1]],
    )
    assert {id(p) for p in holders.parameters(optimizer)} == {id(p) for p in model.parameters()}
    step(model, optimizer, batches(1)[0])


def test_marks_on_a_parameter_survive():
    model = mlp(12, 16, 4)
    model[0].weight.no_weight_decay, model[0].weight.trace = True, torch.arange(192.0).view(16, 12)
    model, optimizer = sparsify(model, SGD(model.parameters(), lr=0.1), 0.3, evolution=SET(interval=None))
    layer = model[0]
    assert layer.values.no_weight_decay
    assert torch.equal(layer.values.trace, layer.flat().float())
    optimizer.evolve()  # a tensor on a parameter is a buffer of it
    assert set(layer.values.trace.tolist()) <= {0.0, *layer.flat().tolist()}


@pytest.mark.parametrize("zero", [True, False])
def test_a_rule_sees_the_gradient_of_a_step_whose_wrapper_zeroes_it(zero):
    seen = []

    def watching(layer):
        seen.append(layer.gradient.clone())
        return saliency(layer)

    watching.needs_gradient = True
    model, optimizer = pair(WRAPPERS["SAM"], Evolution(interval=1, drop=watching))
    (x, y), grads = batches(1)[0], []
    for stepping in optimizer.first_step, optimizer.second_step:
        F.cross_entropy(model(x), y).backward()
        grads = [model[0].values.grad.clone(), model[2].values.grad.clone()]
        stepping(zero_grad=zero or stepping == optimizer.first_step)
    assert_same(seen, grads)


@pytest.mark.parametrize("name", WRAPPERS)
def test_optimizers_that_hold_others_prune_further(name):
    model, optimizer = pair(WRAPPERS[name], density=0.5)
    batch = torch.randn(8, 12, dtype=torch.float64), torch.randint(4, (8,))
    for _ in range(5):
        step(model, optimizer, batch)
    model, pruning = sparsify(model, optimizer, 0.1, evolution=GMP(until=6, interval=2))
    for _ in range(8):  # would warn of state that starts afresh, or fail on lengths
        step(model, pruning, batch)
    assert pruning is optimizer
    assert [record.step for record in pruning.history] == [2, 4, 6]
    assert sum(model[i].nnz for i in (0, 2)) == round(0.1 * 256)
