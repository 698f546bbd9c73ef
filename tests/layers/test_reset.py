"""`reset_parameters()`, as loops call it between the folds of a cross-validation: nothing stays as learnt."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from sparsify import (
    GMP,
    SET,
    GraNet,
    RigL,
    SparseLinear,
    SparseMultiheadAttention,
    SparseOptimizer,
    Static,
    densify,
    sparsify,
    trim,
)
from tests.support.comparing import assert_same
from tests.support.models import mlp
from tests.support.pairs import ADAM, SGD, build, everything, refuse, saved, train, trained

OPTIMIZERS = {
    "SGD": SGD,
    "dampened": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "Adam": ADAM,
    "amsgrad": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "Adagrad": partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.1, t0=0),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
}


def reset(model):
    """As it is written in many loops."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def new_ones(model):
    """New layers of the same connections, values and biases."""
    parts = [model[i] for i in (0, 2)]
    layers = [
        SparseLinear.from_topology(
            layer.shape, layer.flat(), layer.values.detach().clone(), nn.Parameter(layer.bias.detach().clone())
        )
        for layer in parts
    ]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])


def learnt(model):
    return [copy.deepcopy((layer.flat(), layer.values.detach(), layer.bias.detach())) for layer in (model[0], model[2])]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_it_training_is_that_of_new_layers_with_a_new_optimizer(make):
    model, optimizer = trained(make=make, evolution=SET(interval=lambda step: step in (3, 6)))
    before, values = learnt(model), [model[i].values for i in (0, 2)]
    reset(model)
    for layer, (flat, old, bias), parameter in zip((model[0], model[2]), before, values, strict=True):
        assert layer.values is parameter
        assert layer.nnz == len(old)
        assert layer.values.grad is layer.bias.grad is None
        assert not torch.equal(layer.flat(), flat)
        assert not torch.isin(layer.values, old).any()
        assert not torch.isin(layer.bias, bias).any()
    new = new_ones(model)
    train(model, optimizer, 10, 20)  # warnings are errors
    train(new, make(new.parameters()), 10, 20)
    assert_same(model.state_dict(), new.state_dict())


def test_after_it_training_is_that_of_a_dense_twin_that_was_reset():
    model, optimizer = trained(make=ADAM, evolution=SET(interval=8))
    reset(model)
    twin = densify(model).double()
    active = [model[i].to_dense() != 0 for i in (0, 2)]
    adam = ADAM(twin.parameters())
    for step in range(10, 16):
        if step == 15:
            before = copy.deepcopy(model.state_dict())
        train(model, optimizer, step, step + 1)
        adam.zero_grad()
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step)).double()
        (twin(x) - 1).square().mean().backward()
        for layer, places in zip((twin[0], twin[2]), active, strict=True):
            layer.weight.grad *= places
        adam.step()
        if step < 15:
            for number in 0, 2:
                torch.testing.assert_close(model[number].to_dense().double(), twin[number].weight)
                torch.testing.assert_close(model[number].bias.double(), twin[number].bias)
    assert [record.step for record in optimizer.history] == [8, 16]  # the schedule went on where it was
    assert not torch.equal(before["0.col"], model[0].col)


def test_lbfgs_forgets_its_history():
    model, optimizer = build(make=partial(optim.LBFGS, lr=0.1), evolution=Static())
    x = torch.randn(8, 12)

    def closure(net, lbfgs):
        lbfgs.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(lambda: closure(model, optimizer))
    reset(model)
    new = new_ones(model)
    fresh = optim.LBFGS(new.parameters(), lr=0.1)
    for net, each in (model, optimizer), (new, fresh):
        for _ in range(2):
            each.step(lambda net=net, each=each: closure(net, each))
    assert_same(model.state_dict(), new.state_dict())


def test_it_is_a_new_layer_and_torchs_seed_decides():
    layer = SparseLinear(20, 12, 0.3)
    for seed in 1, 2, 1:
        torch.manual_seed(seed)
        layer.reset_parameters()
        torch.manual_seed(seed)
        assert_same(layer.state_dict(), SparseLinear(20, 12, 0.3).state_dict())
    assert layer.density == 0.3
    wide = SparseLinear(1000, 400, 0.1)
    nn.init.normal_(wide.values, std=9.0)
    wide.reset_parameters()
    assert wide.values.abs().max().item() == pytest.approx(0.1, rel=0.01)  # 1 / sqrt(a fan-in of 100)
    assert wide.values.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert wide.bias.abs().max().item() == pytest.approx(1000**-0.5, rel=0.02)


def test_what_was_not_reset_keeps_its_state():
    model, optimizer = trained()
    other = copy.deepcopy(dict(optimizer.state[model[2].values]))
    model[0].reset_parameters()
    optimizer.zero_grad()
    (model(torch.randn(8, 12)) * 0).sum().backward()
    optimizer.step()
    assert not optimizer.state[model[0].values]["momentum_buffer"].any()
    assert not optimizer.state[model[0].bias]["momentum_buffer"].any()
    torch.testing.assert_close(optimizer.state[model[2].values]["momentum_buffer"], other["momentum_buffer"] * 0.9)


def test_the_state_starts_afresh_where_every_place_is_a_connection_too():
    layer = SparseLinear(12, 4, 1.0)
    optimizer = SparseOptimizer(ADAM(layer.parameters()), {"": layer}, Static())
    train(layer, optimizer, 0, 5)
    before = layer.values.detach().clone()
    layer.reset_parameters()
    assert layer.flat().tolist() == list(range(48))
    assert not torch.isin(layer.values, before).any()
    twin = SparseLinear.from_topology(
        layer.shape, layer.flat(), layer.values.detach().clone(), nn.Parameter(layer.bias.detach().clone())
    )
    train(layer, optimizer, 5, 9)
    train(twin, ADAM(twin.parameters()), 5, 9)
    assert_same(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_saved_before_the_next_step_it_resumes_bit_for_bit(density):
    def one(seed):
        torch.manual_seed(seed)
        layer = SparseLinear(12, 4, density)
        return layer, SparseOptimizer(ADAM(layer.parameters()), {"": layer}, SET(interval=6), seed=3)

    layer, optimizer = one(0)
    train(layer, optimizer, 0, 5)
    layer.reset_parameters()
    weights, state = saved(layer, optimizer)
    again, resumed = one(1)
    train(again, resumed, 0, 2)
    again.reset_parameters()  # what is loaded counts, not that the layer was reset before
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for pair in (layer, optimizer), (again, resumed):
        train(*pair, 5, 15)
    assert_same(everything(layer, optimizer), everything(again, resumed))


def test_the_state_that_is_loaded_after_it_is_kept():
    model, optimizer = trained(make=ADAM)
    weights, state = saved(model, optimizer)
    reset(model)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    twin = trained(make=ADAM)
    for pair in (model, optimizer), twin:
        train(*pair, 10, 14)
    assert_same(everything(model, optimizer), everything(*twin))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("steps", [0, 1])
def test_copies_know_of_it(clone, steps):
    model, optimizer = trained(make=ADAM)
    reset(model)
    train(model, optimizer, 10, 10 + steps)
    pairs = (model, optimizer), clone((model, optimizer))
    for pair in pairs:
        train(*pair, 11, 16)
    assert_same(everything(*pairs[0]), everything(*pairs[1]))


@pytest.mark.parametrize("evolution", [RigL(interval=3), GMP(until=30, interval=3), GraNet(until=30, interval=3)])
def test_the_schedule_goes_on_where_it_is(evolution):
    model, optimizer = trained(evolution=evolution)
    counts = [model[0].nnz, model[2].nnz]
    reset(model)
    assert [model[0].nnz, model[2].nnz] == counts
    twin = trained(evolution=evolution)
    for pair in (model, optimizer), twin:
        train(*pair, 10, 33)
    assert [model[i].nnz for i in (0, 2)] == [twin[0][i].nnz for i in (0, 2)]
    assert [record.step for record in optimizer.history] == [record.step for record in twin[1].history]


def test_the_new_places_are_explored():
    model, optimizer = trained(evolution=SET(interval=3))
    layer = model[2]
    seen = round(optimizer.explored["2"] * 64)
    model_before = layer.flat()
    layer.reset_parameters()
    optimizer.state_dict()
    assert round(optimizer.explored["2"] * 64) >= len(set(model_before.tolist()) | set(layer.flat().tolist()))
    fixed, static = trained(evolution=Static())
    first = set(fixed[2].flat().tolist())
    fixed[2].reset_parameters()
    train(fixed, static, 0, 1)
    assert round(static.explored["2"] * 64) == len(first | set(fixed[2].flat().tolist())) > len(first)
    assert seen >= len(model_before)


def test_evolving_or_trimming_right_after_it():
    for act in (lambda model, optimizer: optimizer.evolve(), lambda model, optimizer: trim(model, 0.2, optimizer)):
        model, optimizer = trained(make=ADAM)
        reset(model)
        act(model, optimizer)
        assert not optimizer.state.get(model[0].values)
        train(model, optimizer, 10, 15)


def averaged(average, model):
    with torch.no_grad():
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 0.1)


def test_an_average_does_not_go_on_across_it():
    model, optimizer = build(evolution=Static())
    average = copy.deepcopy(model)
    for step in range(3):
        train(model, optimizer, step, step + 1)
        averaged(average, model)
    before = copy.deepcopy(average.state_dict())
    reset(model)
    assert_same(average.state_dict(), before)
    train(model, optimizer, 3, 5)
    assert_same(average.state_dict(), before)  # left behind, as a snapshot
    averaged(average, model)
    with pytest.raises(RuntimeError, match="Copy the model anew"):
        train(model, optimizer, 5, 6)


def test_a_copy_that_is_reset_goes_its_own_way():
    model, optimizer = trained()
    fold = copy.deepcopy(model)
    reset(fold)
    train(fold, SGD(fold.parameters()), 0, 2)
    untrained = copy.deepcopy(model)
    reset(untrained)
    before = copy.deepcopy(untrained.state_dict())
    twin = trained()
    for pair in (model, optimizer), twin:
        train(*pair, 10, 20)
    assert_same(everything(model, optimizer), everything(*twin))
    assert_same(untrained.state_dict(), before)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    ("name", "replace"),
    [
        ("values", partial(prune.l1_unstructured, amount=0.3)),
        ("bias", partial(prune.l1_unstructured, amount=0.3)),
        ("bias", partial(parametrize.register_parametrization, parametrization=Doubled())),
    ],
)
def test_what_is_computed_from_others_is_refused(name, replace):
    model, _ = trained()
    replace(model[0], name)
    refuse(model[0].reset_parameters, ValueError, f"{name} must be the layer's own parameter", model)
    assert model[0].resets == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_frozen_and_transposed_layers(dtype):
    layer = SparseLinear(20, 12, 0.3, bias=False, dtype=dtype).requires_grad_(False)
    layer.transposed = True
    before = layer.values.clone()
    layer.reset_parameters()
    assert (layer.values.dtype, layer.values.requires_grad, layer.bias, layer.transposed) == (dtype, False, None, True)
    assert not torch.equal(layer.values, before)
    x = torch.randn(3, 20, dtype=dtype)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    layer = SparseLinear(20, 12, 0.3)
    with mode():
        made_there = SparseLinear(20, 12, 0.3)
        for each in layer, made_there:
            before = each.values.clone()
            each.reset_parameters()
            assert not torch.equal(each.values, before)
        assert made_there(torch.ones(2, 20)).isfinite().all()
    x = torch.randn(3, 20)
    layer(x).sum().backward()
    expected = x.sum(0).expand(12, 20).flatten()[layer.flat()]
    torch.testing.assert_close(layer.values.grad, expected)


def test_a_layer_without_connections_and_one_whose_memory_is_new():
    layer = trim(SparseLinear(20, 12, 0.3), 1.0)
    assert layer.nnz == 0
    layer.reset_parameters()
    assert layer.nnz == 0
    assert torch.equal(layer(torch.randn(2, 20)), layer.bias.expand(2, 12))
    layer = SparseLinear(20, 12, 0.3).to("meta")
    layer.reset_parameters()
    layer.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(layer(torch.eye(20)), layer.to_dense().t() + layer.bias)


def attention(**options):
    model = nn.ModuleDict({"a": nn.MultiheadAttention(16, 4, add_bias_kv=True)})
    return sparsify(model, None, 0.4, **options)[0]


def last_first(model):
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)


def by_name(model):
    model.a.out_proj.reset_parameters()
    model.a.reset_parameters()
    model.a.q_proj.reset_parameters()


@pytest.mark.parametrize("order", [reset, last_first, by_name])
def test_attention_starts_anew_in_whatever_order(order):
    model = attention()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    order(model)
    assert type(model.a) is SparseMultiheadAttention
    for name in "q_proj", "k_proj", "v_proj", "out_proj":
        layer = getattr(model.a, name)
        bound = (16 / layer.nnz) ** 0.5  # 1 / sqrt(connections a unit)
        assert 0.8 * bound < layer.values.abs().max() <= bound
        assert not layer.bias.any()
    for bias in model.a.bias_k, model.a.bias_v:
        assert 0 < bias.abs().max() < 2


def test_attention_is_reset_as_a_whole_or_not_at_all():
    model = attention(skip=["*k_proj"])
    prune.l1_unstructured(model.a.out_proj, "values", 0.3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="values must be the layer's own parameter"):
        model.a.reset_parameters()
    assert_same(model.state_dict(), before)
    prune.remove(model.a.out_proj, "values")
    nn.init.constant_(model.a.k_proj.bias, 7.0)
    model.a.reset_parameters()
    assert not torch.equal(model.a.k_proj.weight, before["a.k_proj.weight"])
    assert not model.a.k_proj.bias.any()
    torch.manual_seed(5)
    model.a.reset_parameters()
    once = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    model.a.reset_parameters()
    assert_same(model.state_dict(), once)


def test_on_the_meta_device_the_seed_still_decides_about_attention():
    def make():
        with torch.device("meta"):
            model = nn.ModuleDict({"a": nn.MultiheadAttention(16, 4, add_bias_kv=True)})
        return sparsify(model, None, 0.4, seed=4)[0]

    torch.manual_seed(0)
    one = make()
    torch.manual_seed(1)
    assert torch.equal(one.a.q_proj.flat(), make().a.q_proj.flat())
    assert not one.a.q_proj.bias.any()
    assert one.a.bias_k.abs().max() > 0


def test_folds_of_a_cross_validation_do_not_know_of_each_other():
    torch.manual_seed(0)
    model = mlp(12, 16, 4)
    model, optimizer = sparsify(model, SGD(model.parameters()), 0.3, evolution=SET(interval=4), seed=0)
    x, y = torch.randn(64, 12), torch.arange(64) % 4  # noise: what is not seen can only be guessed
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    seen = F.cross_entropy(model(x), y).item()
    reset(model)
    assert seen < 1.3 < F.cross_entropy(model(x), y).item()


def test_code_that_takes_values_for_a_bias_is_told():
    model, optimizer = build()
    for parameter in model.parameters():
        nn.init.xavier_uniform_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match=r"All values of '0', '2' are the same number.*call reset_parameters\(\)"):
        train(model, optimizer, 0, 1)
    reset(model)
    assert all(layer.values.all() for layer in (model[0], model[2]))
    train(model, optimizer, 1, 5)  # warnings are errors
    dense = mlp(12, 16, 4)
    nn.init.zeros_(dense[2].weight)  # before: it was meant so
    model, optimizer = sparsify(dense, SGD(dense.parameters()), 0.3)
    train(model, optimizer, 0, 2)
