"""Where training starts, if not with a density: pruned models, other topologies, sparse models, several optimizers."""

import copy
import io
import weakref
from collections import UserList, deque
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from transformers.pytorch_utils import Conv1D

from sparsify import (
    GMP,
    SET,
    Evolution,
    GraNet,
    RigL,
    SparseLinear,
    SparseOptimizer,
    Static,
    densify,
    fan_in_uniform,
    kernels,
    plan,
    sparsify,
    summary,
    trim,
)
from sparsify._src import api
from sparsify.evolution import across_layers
from tests.support.comparing import assert_same, snapshot
from tests.support.models import mlp
from tests.support.recorders import recorders


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model, optimizers, steps=1, seed=0):
    optimizers = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    for step in range(steps):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(seed + step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def pruned(amount=0.7, **options):
    """A dense model of which a part of the weights is zero, and its optimizer, in the middle of training."""
    torch.manual_seed(0)
    model = mlp(12, 16, 4, **options)
    optimizer = sgd(model)
    if not options:
        train(model, optimizer, 3)
    with torch.no_grad():
        for layer in model[0], model[2]:
            layer.weight[torch.rand(layer.weight.shape) < amount] = 0
    return model, optimizer


def test_nonzero_takes_exactly_what_is_not_zero_with_the_optimizers_state():
    model, optimizer = pruned()
    dense = {i: model[i].weight.detach().clone() for i in (0, 2)}
    momentum = {i: optimizer.state[model[i].weight]["momentum_buffer"].clone() for i in (0, 2)}
    x = torch.randn(5, 12)
    expected = model(x)
    model, optimizer = sparsify(model, optimizer, start="nonzero", evolution=SET(interval=2))
    torch.testing.assert_close(model(x), expected)
    for i, weight in dense.items():
        assert model[i].flat().tolist() == weight.flatten().nonzero().squeeze(1).tolist()
        assert torch.equal(model[i].to_dense(), weight)
        found = optimizer.state[model[i].values]["momentum_buffer"]
        assert torch.equal(found, momentum[i].flatten()[weight.flatten() != 0])
    counts = [model[0].nnz, model[2].nnz]
    train(model, optimizer, 4)
    assert [model[0].nnz, model[2].nnz] == counts
    assert len(optimizer.history) == 2


def test_negative_zero_is_zero_and_nan_is_not():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.0, torch.nan, 0.0, 2.0]]))
    layer, _ = sparsify(layer, None, start="nonzero")
    assert layer.flat().tolist() == [1, 3]


def test_a_layer_without_zeros_stays_dense_and_one_of_zeros_has_no_connection():
    model = mlp(12, 16, 8, 4)
    with torch.no_grad():
        model[2].weight.zero_()
        model[4].weight[0] = 0
    report = plan(model, start="nonzero")
    assert [(row.name, row.nnz, row.reason) for row in report.layers] == [
        ("0", 192, "its density is 1"),
        ("2", 0, None),
        ("4", 24, None),
    ]
    model, optimizer = sparsify(model, sgd(model), start="nonzero", evolution=SET(interval=1))
    assert [(row.name, row.nnz) for row in summary(model).layers] == [("0", 192), ("2", 0), ("4", 24)]
    train(model, optimizer, 3)
    assert model[2].nnz == 0
    assert not model[2].to_dense().any()
    other, _ = sparsify(mlp(12, 16, 8, 4), None, start=model.state_dict())
    x = torch.randn(3, 12)
    torch.testing.assert_close(other(x), model(x))
    torch.testing.assert_close(densify(trim(model, 0.5))(x), model(x))


def test_nonzero_of_attention():
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(16, 2, batch_first=True))
    with torch.no_grad():
        model[0].in_proj_weight[torch.rand(48, 16) < 0.6] = 0
    x = torch.randn(2, 5, 16)
    expected = model[0](x, x, x)[0]
    weight = model[0].in_proj_weight.detach()
    model, _ = sparsify(model, sgd(model), start="nonzero")
    torch.testing.assert_close(model[0](x, x, x)[0], expected)
    assert model[0].k_proj.flat().tolist() == weight[16:32].flatten().nonzero().squeeze(1).tolist()
    assert type(model[0].out_proj) is not SparseLinear


def test_pruning_that_is_not_permanent_names_the_way_out():
    model = mlp(12, 16, 4)
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r'its pruning is not permanent yet: prune.remove\(layer, "weight"\)'):
        sparsify(model, None, start="nonzero")
    prune.remove(model[0], "weight")
    model, _ = sparsify(model, None, start="nonzero")
    assert model[0].nnz == 96


def hooked_linear():
    model = nn.Sequential(nn.Linear(16, 16))
    prune.l1_unstructured(model[0], "weight", 0.6)
    return model, [(model[0], "weight")]


def hooked_bias():
    model, undone = hooked_linear()
    prune.l1_unstructured(model[0], "bias", 0.5)
    return model, [*undone, (model[0], "bias")]


def hooked_attention():
    model = nn.Sequential(nn.MultiheadAttention(16, 2))
    prune.l1_unstructured(model[0], "in_proj_weight", 0.6)
    return model, [(model[0], "in_proj_weight")]


def hooked_attention_of_several_widths():
    model = nn.Sequential(nn.MultiheadAttention(16, 2, kdim=16, vdim=16))
    model[0] = nn.MultiheadAttention(16, 2, kdim=8, vdim=4)
    prune.l1_unstructured(model[0], "k_proj_weight", 0.6)
    return model, [(model[0], "k_proj_weight")]


def hooked_projection():
    model = nn.Sequential(nn.MultiheadAttention(16, 2))
    prune.l1_unstructured(model[0].out_proj, "weight", 0.6)
    return model, [(model[0].out_proj, "weight")]


def hooked_conv1d():
    model = nn.Sequential(Conv1D(16, 16))
    prune.l1_unstructured(model[0], "weight", 0.6)
    return model, [(model[0], "weight")]


@pytest.mark.parametrize(
    "make",
    [
        hooked_linear,
        hooked_bias,
        hooked_attention,
        hooked_attention_of_several_widths,
        hooked_projection,
        hooked_conv1d,
    ],
)
@pytest.mark.parametrize("start", ["nonzero", "random"])
def test_every_kind_of_layer_whose_pruning_is_not_permanent_names_the_way_out_and_is_taken_after_it(make, start):
    model, undone = make()
    density = () if start == "nonzero" else (0.5,)
    for layer, name in undone:
        reasons = {row.reason for row in plan(model, *density, start=start).dense}
        assert any("its pruning is not permanent yet: prune.remove(layer," in reason for reason in reasons)
        assert not plan(model, *density, start=start).sparse
        prune.remove(layer, name)
    x = torch.randn(5, 2, 16)
    weight = getattr(*undone[0]).detach()
    if isinstance(model[0], nn.MultiheadAttention):
        query = x, torch.randn(5, 2, model[0].kdim), torch.randn(5, 2, model[0].vdim)
        expected = model[0](*query)[0]
        model, _ = sparsify(model, None, *density, start=start)
        found = model[0](*query)[0]
    else:
        expected = model(x)
        model, _ = sparsify(model, None, *density, start=start)
        found = model(x)
    if start == "nonzero":
        torch.testing.assert_close(found, expected)
        layers = [x for x in model.modules() if isinstance(x, SparseLinear)]
        assert sum(layer.nnz for layer in layers) == int(weight.count_nonzero())


@pytest.mark.parametrize(
    "evolution",
    [
        SET(interval=1),
        RigL(interval=1),
        GMP(until=4, interval=1),
        GraNet(until=4, interval=1),
        Evolution(interval=1, scope=across_layers),
        Evolution(interval=1),
    ],
)
def test_a_layer_without_connections_goes_through_everything(evolution, tmp_path):
    def zeroed():
        torch.manual_seed(0)
        model = mlp(12, 16, 8, 4)
        with torch.no_grad():
            model[2].weight.zero_()
            model[4].weight[0] = 0
        density = () if not evolution.prunes else (0.3,)
        adam = torch.optim.Adam(model.parameters())
        return sparsify(
            model,
            adam,
            *density,
            start="nonzero",
            evolution=evolution,
            grown_values=fan_in_uniform,
            grown_state="mean",
            seed=3,
        )

    model, optimizer = zeroed()
    train(model, optimizer, 3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    states = torch.load(tmp_path / "saved.pt", weights_only=True)
    other, resumed = zeroed()
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    train(model, optimizer, 4, seed=9)
    train(other, resumed, 4, seed=9)
    assert_same(other.state_dict(), model.state_dict())
    if evolution.scope is not across_layers:
        assert model[2].nnz == 0
    trim(model, 0.5, optimizer)
    train(model, optimizer)
    x = torch.randn(3, 12)
    torch.testing.assert_close(densify(model)(x), model(x))


@pytest.mark.parametrize("name", kernels.available())
def test_every_kernel_multiplies_by_no_connections(name):
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight.zero_()
    layer, _ = sparsify(layer, None, start="nonzero")
    x = torch.randn(3, 6, requires_grad=True)
    with kernels.use(name):
        y = layer(x)
        y.sum().backward()
    torch.testing.assert_close(y, layer.bias.expand(3, 4))
    assert not x.grad.any()
    assert layer.values.grad.shape == (0,)


def test_a_layer_of_its_own_from_a_pruned_one():
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight[1:3] = 0
    layer = SparseLinear.from_linear(linear, start="nonzero")
    assert torch.equal(layer.to_dense(), linear.weight)
    assert layer.nnz == 12
    with pytest.raises(ValueError, match='density must not be given where start is "nonzero"'):
        SparseLinear.from_linear(linear, 0.5, start="nonzero")
    with pytest.raises(TypeError, match="density must be given"):
        SparseLinear.from_linear(linear)
    with pytest.raises(ValueError, match='start must be "random" for a layer on the meta device'):
        SparseLinear.from_linear(nn.Linear(6, 4, device="meta"), start="nonzero")


def test_what_a_layer_cannot_take_of_the_density_goes_to_the_others():
    torch.manual_seed(0)
    model = mlp(100, 100, 100)
    with torch.no_grad():
        model[0].weight[torch.rand(100, 100) < 0.98] = 0
        model[2].weight[torch.rand(100, 100) < 0.1] = 0
    few = int(model[0].weight.count_nonzero())
    options = {"start": "nonzero", "evolution": GMP(until=3, interval=1)}
    expected = {"0": few, "2": 2000 - few}
    assert {row.name: row.nnz for row in plan(model, 0.1, **options).layers} == expected
    model, optimizer = sparsify(model, sgd(model), 0.1, **options)
    for _ in range(3):
        model(torch.randn(4, 100)).square().mean().backward()
        optimizer.step()
    assert {row.name: row.nnz for row in summary(model).layers} == expected


@pytest.mark.parametrize("evolution", [GMP(until=6, interval=2), GraNet(until=6, interval=2)])
def test_pruning_goes_on_gradually_from_a_pruned_model(evolution):
    model, optimizer = pruned(0.5)
    first = {i: int(model[i].weight.count_nonzero()) for i in (0, 2)}
    model, optimizer = sparsify(model, optimizer, 0.1, start="nonzero", evolution=evolution)
    assert {i: model[i].nnz for i in (0, 2)} == first
    train(model, optimizer, 8)
    targets = {row.name: row.nnz for row in plan(mlp(12, 16, 4), 0.1).layers}
    assert {str(i): model[i].nnz for i in (0, 2)} == targets


def test_another_models_topology_with_this_models_values():
    torch.manual_seed(0)
    model = mlp(12, 16, 4)  # the weights with which the other has begun: a lottery ticket
    ticket = copy.deepcopy(model)
    ticket, optimizer = sparsify(ticket, sgd(ticket), 0.3, evolution=SET(interval=1))
    train(ticket, optimizer, 3)
    weights = {i: model[i].weight.detach().clone() for i in (0, 2)}
    model, optimizer = sparsify(model, sgd(model), start=ticket, evolution=SET(interval=1))
    for i in (0, 2):
        assert torch.equal(model[i].flat(), ticket[i].flat())
        assert torch.equal(model[i].values, weights[i].flatten()[ticket[i].flat()])
        assert model[i].col is not ticket[i].col
    train(model, optimizer, 2)
    assert not torch.equal(model[0].flat(), ticket[0].flat())


def test_another_models_topology_on_the_meta_device():
    ticket, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    with torch.device("meta"):
        model = mlp(12, 16, 4)
    model, _ = sparsify(model, None, start=ticket)
    assert torch.equal(model[0].flat(), ticket[0].flat())
    assert model[0].values.abs().max() <= (16 / model[0].nnz) ** 0.5
    assert model[0].values.unique().numel() == model[0].nnz
    assert model[0].bias.any()


class Twice(nn.Module):
    """One layer at two places, or two layers."""

    def __init__(self, shared):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.block = nn.Sequential(nn.Tanh(), self.first if shared else nn.Linear(12, 12))

    def forward(self, x):
        return self.block(self.first(x))


@pytest.mark.parametrize("state_dict", [False, True])
def test_a_layer_at_two_places_takes_its_one_topology(state_dict):
    other, _ = sparsify(Twice(shared=True), None, 0.3)
    model, _ = sparsify(Twice(shared=True), None, start=other.state_dict() if state_dict else other)
    assert model.first is model.block[1]
    assert torch.equal(model.first.flat(), other.first.flat())
    apart, _ = sparsify(Twice(shared=False), None, start=other.state_dict() if state_dict else other)
    assert apart.first is not apart.block[1]
    assert torch.equal(apart.block[1].flat(), other.first.flat())
    two, _ = sparsify(Twice(shared=False), None, 0.3)
    with pytest.raises(ValueError, match=r"start must have one topology .* 'first' is at 'block\.1' too"):
        sparsify(Twice(shared=True), None, start=two.state_dict() if state_dict else two)


@pytest.mark.parametrize(
    "wrap",
    [
        AveragedModel,
        nn.DataParallel,
        partial(torch.compile, backend="eager"),
        lambda m: AveragedModel(nn.Sequential(*m)),
    ],
)
def test_the_topology_may_come_from_a_wrapped_model(wrap):
    ticket, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    model, _ = sparsify(mlp(12, 16, 4), None, start=wrap(ticket))
    assert all(torch.equal(model[i].flat(), ticket[i].flat()) for i in (0, 2))


def test_the_topology_of_attention_and_conv1d_and_skip():
    def net():
        return nn.ModuleDict(
            {"attention": nn.MultiheadAttention(16, 2), "conv": Conv1D(8, 16), "head": nn.Linear(8, 4)}
        )

    ticket, _ = sparsify(net(), None, 0.3)
    model = net()
    dense = model["conv"].weight.detach().t().clone()
    model, _ = sparsify(model, None, start=ticket, skip="head")
    for part in "q_proj", "k_proj", "v_proj", "out_proj":
        one, other = model["attention"].get_submodule(part), ticket["attention"].get_submodule(part)
        assert torch.equal(one.flat(), other.flat())
    assert torch.equal(model["conv"].values, dense.flatten()[ticket["conv"].flat()])
    assert type(model["head"]) is nn.Linear


def test_a_new_model_on_meta_with_the_topology_of_attention():
    ticket, _ = sparsify(nn.Sequential(nn.MultiheadAttention(16, 2)), None, 0.3)
    with torch.device("meta"):
        model = nn.Sequential(nn.MultiheadAttention(16, 2))
    model, _ = sparsify(model, None, start=ticket)
    for part in "q_proj", "k_proj", "v_proj", "out_proj":
        layer = model[0].get_submodule(part)
        assert torch.equal(layer.flat(), ticket[0].get_submodule(part).flat())
        assert 0 < layer.values.abs().max() <= (16 / layer.nnz) ** 0.5
        assert not layer.bias.any()


def test_a_bare_linear_on_meta_is_never_allocated_dense(monkeypatch):
    allocated = []
    zeros_like = torch.zeros_like
    monkeypatch.setattr(
        torch, "zeros_like", lambda x, **options: allocated.append(x.numel()) or zeros_like(x, **options)
    )
    sparsify(nn.Linear(100, 100, device="meta"), None, 0.1)
    assert max(allocated, default=0) < 10_000


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, TypeError, r'density must be given, such as .*\. Without a density: start="nonzero" takes a pruned'),
        ((0.3,), {"start": "nonzero"}, ValueError, "density must not be given where start gives the connections"),
        ((), {"start": "nonzero"}, ValueError, "model must hold an nn.Linear with weights that are zero, got none"),
        ((), {"start": "zero"}, ValueError, 'start must be "random", "magnitude", "nonzero", the state dict'),
        ((), {"start": mlp(3, 3)}, ValueError, "start must be the sparse model, got one without sparse layers"),
        (
            (),
            {"start": {"epoch": 3, "best": sparsify(mlp(12, 16, 4), None, 0.3)[0].state_dict()}},
            ValueError,
            r"got one at 'best' of a checkpoint. Pass it alone: start=...\['best'\]",
        ),
        ((), {"start": {}}, ValueError, "start must be the state dict of a sparse model, got one without"),
        (
            (),
            {"start": sparsify(mlp(5, 16, 4), None, 0.3)[0]},
            ValueError,
            r"got \(16, 12\) in layer '0', there \(16, 5\)",
        ),
        (
            (),
            {"start": sparsify(mlp(12, 16, 4, 3), None, 0.3)[0]},
            ValueError,
            "got none at '4': the model has no such",
        ),
        (
            (),
            {"start": "nonzero", "evolution": GMP(until=9)},
            ValueError,
            "density must be given where evolution prunes",
        ),
    ],
)
def test_what_cannot_start_is_refused_and_nothing_changed(arguments, options, error, message):
    model = mlp(12, 16, 4)
    optimizer, before = sgd(model), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        sparsify(model, optimizer, *arguments, **options)
    assert_same(model.state_dict(), before)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


# A model that is sparse already


def test_a_sparse_model_is_pruned_further_in_the_middle_of_training():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.5)
    model, optimizer = sparsify(model, sgd(model), evolution=SET(interval=3))
    train(model, optimizer, 5)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    model, pruning = sparsify(model, optimizer, 0.1, evolution=GMP(until=8, interval=2))
    assert_same((model.state_dict(), pruning.state_dict()["state"]), before)
    assert pruning is optimizer, "schedulers and trainers hold it"
    train(model, pruning, 10)
    assert [record.step for record in pruning.history] == [2, 4, 6, 8]
    assert sum(model[i].nnz for i in (0, 2)) == round(0.1 * 256)
    for i in (0, 2):
        assert len(pruning.state[model[i].values]["momentum_buffer"]) == model[i].nnz


def test_what_was_left_dense_shares_the_lower_density():
    model = mlp(64, 50, 30, 6)
    model, optimizer = sparsify(model, sgd(model), 0.3)
    assert type(model[4]) is nn.Linear, "its density is 1"
    x = torch.randn(8, 64)
    model(x).square().mean().backward()
    optimizer.step()
    before = model(x)
    momentum = optimizer.state[model[4].weight]["momentum_buffer"].clone()
    evolution = GMP(until=4, interval=1)
    expected = {row.name: row.nnz for row in plan(mlp(64, 50, 30, 6), 0.05).layers}
    assert {row.name: row.nnz for row in plan(model, 0.05, optimizer=optimizer, evolution=evolution).layers} == expected
    model, optimizer = sparsify(model, optimizer, 0.05, evolution=evolution)
    torch.testing.assert_close(model(x), before)  # nothing has gone yet
    assert torch.equal(optimizer.state[model[4].values]["momentum_buffer"], momentum.flatten())
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert {row.name: row.nnz for row in summary(model).layers} == expected
    assert sum(expected.values()) == round(0.05 * (64 * 50 + 50 * 30 + 30 * 6))


def test_what_is_skipped_is_not_pruned_further():
    model, optimizer = sparsify(mlp(12, 16, 16, 4), None, 0.3)
    model, optimizer = sparsify(model, sgd(model), evolution=Static())
    counts = {i: model[i].nnz for i in (0, 2, 4)}
    model, optimizer = sparsify(model, optimizer, 0.1, evolution=GMP(until=2, interval=1), skip=["0"])
    train(model, optimizer, 2)
    assert model[0].nnz == counts[0]
    assert model[2].nnz + model[4].nnz == round(0.1 * (256 + 64))


def test_pruning_further_is_that_of_a_dense_twin():
    torch.manual_seed(0)
    model = mlp(12, 16, 4, dtype=torch.float64)
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters(), lr=0.01), 0.5, evolution=Static())
    twin = densify(model)
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)

    def active():
        return {i: torch.zeros_like(twin[i].weight).flatten().index_fill(0, model[i].flat(), 1.0) for i in (0, 2)}

    def step(batch):
        x = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        places = active()
        for one, each in (model, optimizer), (twin, adam):
            each.zero_grad()
            (one(x) - 1).square().mean().backward()
            if one is twin:
                for i in (0, 2):
                    twin[i].weight.grad *= places[i].view_as(twin[i].weight)
            each.step()
        now = active()
        for i in (0, 2):
            kept, gone = now[i].bool(), places[i].bool() & ~now[i].bool()
            magnitude = twin[i].weight.detach().abs().flatten()
            if gone.any():
                assert magnitude[gone].max() <= magnitude[kept].min()
            for tensor in twin[i].weight.data, *(s for s in adam.state[twin[i].weight].values() if s.dim()):
                tensor.mul_(now[i].view_as(tensor))
            torch.testing.assert_close(model[i].to_dense().detach(), twin[i].weight.detach())

    for batch in range(3):
        step(batch)
    model, optimizer = sparsify(model, optimizer, 0.1, evolution=GMP(until=6, interval=2))
    for batch in range(3, 13):
        step(batch)
    assert sum(model[i].nnz for i in (0, 2)) == round(0.1 * 256)


def test_a_run_that_prunes_further_resumes_bit_for_bit(tmp_path):
    def begun():
        torch.manual_seed(0)
        model = mlp(12, 16, 4)
        return sparsify(model, sgd(model), 0.4, evolution=SET(interval=2), seed=1)

    evolution = GraNet(until=8, interval=2)
    model, optimizer = begun()
    train(model, optimizer, 3)
    model, optimizer = sparsify(model, optimizer, 0.1, evolution=evolution, seed=2)
    train(model, optimizer, 5, seed=3)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    states = torch.load(tmp_path / "saved.pt", weights_only=True)
    other = mlp(12, 16, 4)
    other, resumed = sparsify(other, sgd(other), start=states[0], evolution=evolution)
    resumed.load_state_dict(states[1])
    for one, each in (model, optimizer), (other, resumed):
        train(one, each, 6, seed=20)
    assert_same(other.state_dict(), model.state_dict())
    assert_same(resumed.state_dict(), optimizer.state_dict())


def test_schedulers_go_on_with_an_optimizer_that_prunes_further():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.5)
    model, optimizer = sparsify(model, sgd(model), evolution=Static())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    model, optimizer = sparsify(model, optimizer, 0.1, evolution=GMP(until=4, interval=2))
    for _ in range(4):
        train(model, optimizer)
        scheduler.step()  # would warn that no step came before
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4
    assert len(optimizer.history) == 2


def test_state_that_belongs_to_another_topology_is_known_to_after_the_algorithm_changed():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.3, seed=1)
    model, optimizer = sparsify(model, sgd(model), evolution=Static())
    train(model, optimizer, 2)
    model.load_state_dict(sparsify(mlp(12, 16, 4), None, 0.3, seed=2)[0].state_dict())
    model, optimizer = sparsify(model, optimizer, evolution=SET(interval=5))
    gradients = {}
    with pytest.warns(UserWarning, match="starts afresh"):
        train(model, optimizer)
    for i in (0, 2):
        gradients[i] = model[i].values.grad
        assert torch.equal(optimizer.state[model[i].values]["momentum_buffer"], gradients[i]), "of this step alone"


def test_an_optimizer_of_another_model_is_refused():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.5)
    model, optimizer = sparsify(model, sgd(model))
    with pytest.raises(TypeError, match=r"must not be wrapped already, unless model holds all .* layer '2' of another"):
        sparsify(model[0], optimizer, evolution=SET(interval=1))


def test_another_algorithm_or_optimizer_goes_on_with_the_same_layers():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.3)
    layers = [model[0], model[2]]
    model, optimizer = sparsify(model, sgd(model), evolution=Static())
    train(model, optimizer, 2)
    model, optimizer = sparsify(model, optimizer, evolution=RigL(interval=1))
    assert [model[0], model[2]] == layers
    train(model, optimizer, 2)
    assert len(optimizer.history) == 2
    model, other = sparsify(model, torch.optim.AdamW(model.parameters()), evolution=SET(interval=1))
    train(model, other, 1)
    assert len(other.history) == 1
    assert len(optimizer.history) == 2
    with pytest.raises(ValueError, match="density must be given where evolution prunes"):
        sparsify(model, other, evolution=GMP(until=5))
    with pytest.raises(ValueError, match=r"density must be lower than that of the sparse layers, got 0\.9"):
        sparsify(model, other, 0.9, evolution=GMP(until=5))


def test_a_call_that_fails_leaves_the_wrapped_optimizer_at_work(monkeypatch):
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.3)
    model, optimizer = sparsify(model, sgd(model), evolution=SET(interval=1))
    with monkeypatch.context() as patch:
        patch.setattr(api.model_loading, "watch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sparsify(model, optimizer, evolution=RigL(interval=1))
    train(model, optimizer, 2)
    assert len(optimizer.history) == 2


def test_an_algorithm_that_is_over_keeps_no_backward_passes():
    model, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    before = weakref.WeakSet(recorders())
    model, first = sparsify(model, sgd(model), evolution=RigL(interval=None))
    found = weakref.WeakSet(each for each in recorders() if each not in before)
    train(model, first, 1)
    assert len(found) == 2
    model, second = sparsify(model, first, evolution=SET(interval=2))
    train(model, second, 3)
    assert not found


# Several optimizers for the parts of one model


def parts(make=mlp, **options):
    torch.manual_seed(0)
    model = make(12, 16, 16, 4, **options)
    adam = torch.optim.Adam([*model[0].parameters(), *model[2].parameters()], lr=0.01)
    return model, adam, torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9)


def in_one_call(model, adam, plain):
    model, (adam, plain) = sparsify(model, (adam, plain), 0.3, evolution=SET(interval=2), seed=1)
    return model, adam, plain


def in_two_calls(model, adam, plain):
    model, adam = sparsify(model, adam, 0.3, evolution=SET(interval=2), seed=1)
    model, plain = sparsify(model, plain, 0.3, evolution=SET(interval=2), seed=1)
    return model, adam, plain


@pytest.mark.parametrize("way", [in_one_call, in_two_calls])
def test_several_optimizers_train_their_parts_as_in_a_dense_twin(way):
    model, adam, plain = way(*parts(dtype=torch.float64))
    assert list(adam.explored) == ["0", "2"]
    assert list(plain.explored) == ["4"]
    twin, *twins = parts(dtype=torch.float64)
    active = {}
    with torch.no_grad():
        for i in (0, 2, 4):
            twin[i].weight.copy_(model[i].to_dense())
            twin[i].bias.copy_(model[i].bias)
    for step in range(9):
        for i in (0, 2, 4):
            active[i] = torch.zeros(twin[i].weight.numel(), dtype=torch.bool).index_fill(0, model[i].flat(), True)
            active[i] = active[i].view_as(twin[i].weight)
        x = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for one, optimizers in (model, (adam, plain)), (twin, twins):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (one(x) - 1).square().mean().backward()
            if one is twin:
                for i in (0, 2, 4):
                    twin[i].weight.grad *= active[i]
            for optimizer in optimizers:
                optimizer.step()
        for i, owner in (0, twins[0]), (2, twins[0]), (4, twins[1]):
            now = torch.zeros(twin[i].weight.numel(), dtype=torch.bool).index_fill(0, model[i].flat(), True)
            now = now.view_as(twin[i].weight)
            buffers = [b for b in owner.state[twin[i].weight].values() if b.shape == now.shape]
            for tensor in (twin[i].weight.data, *buffers):
                tensor[now ^ active[i]] = 0
            torch.testing.assert_close(model[i].to_dense(), twin[i].weight.detach())
    assert len(adam.history) == len(plain.history) == 4


def test_in_one_call_the_density_is_shared_over_all_layers():
    model, *optimizers = parts()
    model, _ = sparsify(model, optimizers, 0.2)
    assert sum(model[i].nnz for i in (0, 2, 4)) == round(0.2 * (192 + 256 + 64))


@pytest.mark.parametrize("way", [in_one_call, in_two_calls])
def test_parts_resume_bit_for_bit(way):
    model, *optimizers = way(*parts())
    train(model, optimizers, 5)
    file = io.BytesIO()
    torch.save([model.state_dict(), *(each.state_dict() for each in optimizers)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, *resumed = way(*parts())
    for one, state in zip((other, *resumed), saved, strict=True):
        one.load_state_dict(state)
    train(model, optimizers, 5, seed=50)
    train(other, resumed, 5, seed=50)
    assert_same(other.state_dict(), model.state_dict())
    model, *optimizers = way(*parts())
    started, _ = sparsify(parts()[0], None, start=saved[0])
    model.load_state_dict(saved[0])
    assert_same(started.state_dict(), model.state_dict())


def test_an_optimizer_without_sparse_layers_comes_back_as_it_was():
    model = nn.Sequential(nn.Embedding(9, 12, sparse=True), nn.Linear(12, 16))
    sparse = torch.optim.SparseAdam(model[0].parameters())
    dense = torch.optim.AdamW(model[1].parameters())
    model, optimizers = sparsify(model, [dense, sparse], 0.3, evolution=SET(interval=1))
    assert isinstance(optimizers, tuple)
    assert optimizers[1] is sparse
    assert isinstance(optimizers[0], SparseOptimizer)
    model(torch.tensor([1, 2])).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_a_bias_that_is_split_is_replaced_in_whichever_optimizer_holds_it():
    attention = nn.MultiheadAttention(16, 2)
    weights = torch.optim.SGD([p for p in attention.parameters() if p.dim() > 1], lr=0.1)
    biases = torch.optim.SGD([p for p in attention.parameters() if p.dim() == 1], lr=0.1)
    layer, (weights, biases) = sparsify(attention, (weights, biases), 0.3)
    held = {id(p) for each in (weights, biases) for p in each.param_groups[0]["params"]}
    assert held == {id(p) for p in layer.parameters()}


@pytest.mark.parametrize("kind", [list, tuple, UserList, deque])
def test_any_sequence_of_optimizers(kind):
    model, *optimizers = parts()
    model, found = sparsify(model, kind(optimizers), 0.3)
    assert [each.__wrapped__ for each in found] == optimizers
    assert isinstance(found, tuple)
    with pytest.raises(ValueError, match="optimizer must be one, several or None, got none"):
        sparsify(mlp(12, 4), kind([]), 0.3)


def test_attention_whose_parts_are_in_optimizers_of_other_calls_stays_dense():
    attention = nn.MultiheadAttention(16, 2)
    model = nn.Sequential(attention, nn.Linear(16, 16))
    first = torch.optim.SGD([*attention.out_proj.parameters(), *model[1].parameters()], lr=0.1)
    second = torch.optim.SGD([attention.in_proj_weight, attention.in_proj_bias], lr=0.1)
    reasons = {row.name: row.reason for row in plan(model, 0.3, optimizer=first).layers}
    assert "name all optimizers in one call" in reasons["0.out_proj"]
    model, first = sparsify(model, first, 0.3)
    assert model[0] is attention
    assert isinstance(model[1], SparseLinear)
    assert second.param_groups[0]["params"] == [attention.in_proj_weight, attention.in_proj_bias]


def test_several_optimizers_from_a_state_dict_another_model_and_meta():
    trained, *optimizers = in_one_call(*parts())
    train(trained, optimizers, 5)
    for start in trained.state_dict(), trained:
        model, *made = parts()
        model, found = sparsify(model, made, start=start)
        assert [list(each.explored) for each in found] == [["0", "2"], ["4"]]
        assert all(torch.equal(model[i].flat(), trained[i].flat()) for i in (0, 2, 4))
    with torch.device("meta"):
        model, *made = parts()
    model, found = sparsify(model, made, 0.3, evolution=SET(interval=1))
    held = {id(p) for each in found for group in each.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    train(model, found, 2)
    assert [len(each.history) for each in found] == [2, 2]


def test_all_of_several_optimizers_are_pruned_further_together():
    model, *optimizers = in_one_call(*parts())
    train(model, optimizers, 3)
    model, found = sparsify(model, optimizers, 0.1, evolution=GMP(until=2, interval=1))
    assert list(found) == optimizers
    train(model, optimizers, 2)
    assert sum(model[i].nnz for i in (0, 2, 4)) == round(0.1 * (192 + 256 + 64))


def test_a_model_that_is_sparse_in_part_is_planned_and_summed_up():
    model, adam, plain = parts()
    model, adam = sparsify(model, adam, 0.3)
    assert [row.kind for row in summary(model).layers] == ["SparseLinear", "SparseLinear", "Linear"]
    table = plan(model, 0.25, optimizer=plain)
    assert [row.nnz for row in table.layers] == [model[0].nnz, model[2].nnz, 16]
    flat = model[0].flat()
    model, plain = sparsify(model, plain, 0.25)
    assert [model[i].nnz for i in (0, 2, 4)] == [row.nnz for row in table.layers]
    assert torch.equal(model[0].flat(), flat)
    x = torch.randn(3, 12)
    torch.testing.assert_close(densify(model)(x), model(x))
    assert len(model._load_state_dict_pre_hooks) == 1


@pytest.mark.parametrize("sabotage", ["watch", "second optimizer"])
def test_a_call_that_fails_leaves_model_and_all_optimizers_as_they_were(monkeypatch, sabotage):
    model, adam, plain = parts()
    train(model, (adam, plain), 2)
    before = [snapshot(model, each) for each in (adam, plain)]
    if sabotage == "watch":
        monkeypatch.setattr(api.model_loading, "watch", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(plain, "register_step_post_hook", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparsify(model, (adam, plain), 0.3)
    assert_same([snapshot(model, each) for each in (adam, plain)], before)
    monkeypatch.undo()
    train(model, (adam, plain))


def test_trim_moves_the_state_of_several_optimizers():
    model, adam, plain = in_one_call(*parts())
    train(model, (adam, plain), 3)
    known = {i: adam.state[model[i].values]["exp_avg"].clone() for i in (0, 2)}
    known[4] = plain.state[model[4].values]["momentum_buffer"].clone()
    before = {i: model[i].flat() for i in (0, 2, 4)}
    trim(model, 0.4, (adam, plain))
    for i, buffer in known.items():
        stays = torch.isin(before[i], model[i].flat())
        assert 0 < int(stays.sum()) < len(stays)
        now = plain.state[model[4].values]["momentum_buffer"] if i == 4 else adam.state[model[i].values]["exp_avg"]
        assert torch.equal(now, buffer[stays])
    train(model, (adam, plain), 2)  # would warn of state that starts afresh
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer or None, got str"):
        trim(model, 0.4, (adam, "sgd"))
    counts = [model[i].nnz for i in (0, 2, 4)]
    with pytest.raises(ValueError, match="a layer must be trained by one optimizer, got several that hold that of '0'"):
        trim(model, 0.4, (adam, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert [model[i].nnz for i in (0, 2, 4)] == counts


def test_what_several_optimizers_cannot_do_is_refused_and_nothing_changed():
    model, adam, plain = parts()
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="a layer must be trained by one optimizer, got several that hold that of '4'"):
        sparsify(model, (plain, both), 0.3)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got str"):
        sparsify(model, (plain, "adam"), 0.3)
    with pytest.raises(ValueError, match="optimizer must hold the parameters of model"):
        sparsify(model, (torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1),), 0.3)
    assert_same(model.state_dict(), before)
    assert all(type(each) in (torch.optim.Adam, torch.optim.SGD) for each in (adam, plain, both))


def test_a_part_may_be_trimmed_and_evolved_by_itself():
    model, adam, plain = in_one_call(*parts())
    train(model, (adam, plain), 3)
    body = model[0].flat()
    plain.evolve()
    assert torch.equal(model[0].flat(), body)
    momentum = {i: x["momentum_buffer"].clone() for i, x in enumerate(plain.state.values())}
    trim(model[4], 0.5, plain)
    assert len(plain.state[model[4].values]["momentum_buffer"]) == model[4].nnz < len(momentum[0])
    train(model, (adam, plain), 1)


def test_adversaries_with_optimizers_of_their_own():
    torch.manual_seed(0)
    nets = nn.ModuleDict({"generator": mlp(4, 16, 12), "critic": mlp(12, 16, 1)})
    makes = [torch.optim.Adam(nets[name].parameters(), lr=0.01) for name in ("generator", "critic")]
    nets, (of_generator, of_critic) = sparsify(nets, makes, 0.3, evolution=RigL(interval=2))
    for _ in range(6):
        fake = nets["generator"](torch.randn(8, 4))
        of_critic.zero_grad()
        loss = F.softplus(nets["critic"](fake.detach())).mean() + F.softplus(-nets["critic"](torch.randn(8, 12))).mean()
        loss.backward()
        of_critic.step()
        of_generator.zero_grad()
        F.softplus(-nets["critic"](fake)).mean().backward()
        of_generator.step()
    assert [len(each.history) for each in (of_generator, of_critic)] == [3, 3]
    assert all(name.startswith("critic") for name in of_critic.history[0].dropped)
