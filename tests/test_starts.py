"""Where training starts, if not with a density: pruned models, other topologies, sparse models, several optimizers."""

import copy
import io
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sparsify import (
    GMP,
    SET,
    GraNet,
    RigL,
    SparseLinear,
    SparseOptimizer,
    Static,
    densify,
    plan,
    sparsify,
    summary,
    trim,
)

from .conftest import assert_same, mlp


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
    model, optimizer = sparsify(model, optimizer, start="nonzero", evolution=SET(2))
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
    model, optimizer = sparsify(model, sgd(model), start="nonzero", evolution=SET(1))
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
    ticket, optimizer = sparsify(ticket, sgd(ticket), 0.3, evolution=SET(1))
    train(ticket, optimizer, 3)
    weights = {i: model[i].weight.detach().clone() for i in (0, 2)}
    model, optimizer = sparsify(model, sgd(model), start=ticket, evolution=SET(1))
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


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, TypeError, r'density must be given. Without a density: start="nonzero" takes a pruned model'),
        ((0.3,), {"start": "nonzero"}, ValueError, "density must not be given where start gives the connections"),
        ((), {"start": "nonzero"}, ValueError, "model must hold an nn.Linear with weights that are zero, got none"),
        ((), {"start": "zero"}, ValueError, 'start must be "random", "magnitude", "nonzero", the state dict'),
        ((), {"start": mlp(3, 3)}, ValueError, "start must be the sparse model, got one without sparse layers"),
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
        ((), {"start": "nonzero", "evolution": GMP(9)}, ValueError, "density must be given where evolution prunes"),
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
    model, optimizer = sparsify(model, sgd(model), evolution=SET(3))
    train(model, optimizer, 5)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    model, pruning = sparsify(model, optimizer, 0.1, evolution=GMP(until=8, interval=2))
    assert_same((model.state_dict(), pruning.state_dict()["state"]), before)
    assert pruning.__wrapped__ is optimizer.__wrapped__
    train(model, pruning, 10)
    assert [record.step for record in pruning.history] == [2, 4, 6, 8]
    assert sum(model[i].nnz for i in (0, 2)) == round(0.1 * 256)
    assert len(optimizer.history) == 1
    for i in (0, 2):
        assert len(pruning.state[model[i].values]["momentum_buffer"]) == model[i].nnz


def test_another_algorithm_or_optimizer_goes_on_with_the_same_layers():
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.3)
    layers = [model[0], model[2]]
    model, optimizer = sparsify(model, sgd(model), evolution=Static())
    train(model, optimizer, 2)
    model, optimizer = sparsify(model, optimizer, evolution=RigL(1))
    assert [model[0], model[2]] == layers
    train(model, optimizer, 2)
    assert len(optimizer.history) == 2
    model, other = sparsify(model, torch.optim.AdamW(model.parameters()), evolution=SET(1))
    train(model, other, 1)
    assert len(other.history) == 1
    assert len(optimizer.history) == 2
    with pytest.raises(ValueError, match="density must be given where evolution prunes"):
        sparsify(model, other, evolution=GMP(5))
    with pytest.raises(ValueError, match=r"density must be lower than that of the sparse layers, got 0\.9"):
        sparsify(model, other, 0.9, evolution=GMP(5))


def test_a_call_that_fails_leaves_the_wrapped_optimizer_at_work(monkeypatch):
    model, optimizer = sparsify(mlp(12, 16, 4), None, 0.3)
    model, optimizer = sparsify(model, sgd(model), evolution=SET(1))
    with monkeypatch.context() as patch:
        patch.setattr(SparseOptimizer, "__init__", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sparsify(model, optimizer, evolution=RigL(1))
    train(model, optimizer, 2)
    assert len(optimizer.history) == 2


def test_an_algorithm_that_is_over_keeps_no_backward_passes():
    model, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    model, first = sparsify(model, sgd(model), evolution=RigL(None))
    recorders = [weakref.ref(recorder) for recorder in first._self_evolver.recorders.values()]
    train(model, first, 1)
    model, second = sparsify(model, first, evolution=SET(2))
    train(model, second, 3)
    assert len(recorders) == 2
    assert not any(recorder() for recorder in recorders)


# Several optimizers for the parts of one model


def parts(make=mlp, **options):
    torch.manual_seed(0)
    model = make(12, 16, 16, 4, **options)
    adam = torch.optim.Adam([*model[0].parameters(), *model[2].parameters()], lr=0.01)
    return model, adam, torch.optim.SGD(model[4].parameters(), lr=0.1, momentum=0.9)


def in_one_call(model, adam, plain):
    model, (adam, plain) = sparsify(model, (adam, plain), 0.3, evolution=SET(2), seed=1)
    return model, adam, plain


def in_two_calls(model, adam, plain):
    model, adam = sparsify(model, adam, 0.3, evolution=SET(2), seed=1)
    model, plain = sparsify(model, plain, 0.3, evolution=SET(2), seed=1)
    return model, adam, plain


@pytest.mark.parametrize("way", [in_one_call, in_two_calls])
def test_several_optimizers_train_their_parts_as_in_a_dense_twin(way):
    model, adam, plain = way(*parts(dtype=torch.float64))
    assert list(adam._self_evolver.layers) == ["0", "2"]
    assert list(plain._self_evolver.layers) == ["4"]
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
    model, optimizers = sparsify(model, [dense, sparse], 0.3, evolution=SET(1))
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


def test_what_several_optimizers_cannot_do_is_refused_and_nothing_changed():
    model, adam, plain = parts()
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="a layer must be trained by one optimizer, got several that hold that of '4'"):
        sparsify(model, (plain, both), 0.3)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got str"):
        sparsify(model, (plain, "adam"), 0.3)
    with pytest.raises(ValueError, match=r"model must hold an nn\.Linear that can be sparse"):
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
    nets, (of_generator, of_critic) = sparsify(nets, makes, 0.3, evolution=RigL(2))
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
