import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SET, SparseLinear, Static, densify, epsilon, sparsify, trim
from sparsify._src import api
from sparsify._src.conversion import replacement, transfer
from tests.support.comparing import assert_same, snapshot
from tests.support.marks import needs_muon
from tests.support.models import mlp


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **({"momentum": 0.9} | options))


def step(model, optimizer, width=12):
    loss = model(torch.randn(8, width)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def test_one_line_and_the_loop_stays():
    model = mlp(12, 16, 4)
    model, optimizer = sparsify(model, sgd(model), density=0.3)
    assert [type(m).__name__ for m in model] == ["SparseLinear", "Tanh", "SparseLinear"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    values = [model[0].values, model[2].values]
    before = [v.detach().clone() for v in values]
    for _ in range(3):
        step(model, optimizer)
    assert [model[0].values, model[2].values] == values
    assert all(not torch.equal(v, b) for v, b in zip(values, before, strict=True))


def test_a_bare_linear_comes_back_replaced():
    linear = nn.Linear(12, 4)
    layer, optimizer = sparsify(linear, sgd(linear), density=0.5)
    assert isinstance(layer, SparseLinear)
    step(layer, optimizer)


def test_without_an_optimizer():
    model, optimizer = sparsify(mlp(12, 16, 4), None, density=0.3)
    assert optimizer is None
    assert isinstance(model[0], SparseLinear)


def test_density_1_leaves_all_dense_and_works():
    model = mlp(12, 16, 4)
    model, optimizer = sparsify(model, sgd(model), density=1.0)
    assert isinstance(model[0], nn.Linear)
    step(model, optimizer)


def test_same_seed_same_topology_other_seed_another():
    one, same, other = (sparsify(mlp(12, 16, 4), None, 0.3, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one[0].flat(), same[0].flat())
    assert not torch.equal(one[0].flat(), other[0].flat())


def test_no_global_random_number_is_drawn():
    model = mlp(12, 16, 4)
    state = torch.get_rng_state()
    sparsify(model, sgd(model), 0.3)[1].evolve()
    assert torch.equal(torch.get_rng_state(), state)


def test_manual_seed_decides_where_no_seed_is_given():
    topologies = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        topologies.append(sparsify(nn.Linear(30, 30), None, 0.1)[0].flat())
    assert torch.equal(topologies[0], topologies[1])
    assert not torch.equal(topologies[0], topologies[2])


def test_layers_of_one_shape_get_different_topologies():
    model, _ = sparsify(mlp(16, 16, 16), None, 0.3)
    assert not torch.equal(model[0].flat(), model[2].flat())


def test_param_groups_keep_their_order_and_options():
    model = mlp(12, 16, 8, 4)
    groups = [
        {"params": [model[4].weight, model[0].bias], "lr": 0.5},
        {"params": [model[0].weight, model[4].bias, model[2].weight], "weight_decay": 0.25},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    lists = [group["params"] for group in optimizer.param_groups]
    model, wrapped = sparsify(model, optimizer, 0.3)
    assert [[id(p) for p in group["params"]] for group in wrapped.param_groups] == [
        [id(model[4].values), id(model[0].bias)],
        [id(model[0].values), id(model[4].bias), id(model[2].values)],
    ]
    assert [group["params"] for group in optimizer.param_groups] == lists
    assert wrapped.param_groups[0]["lr"] == 0.5
    assert wrapped.param_groups[1]["weight_decay"] == 0.25


def test_named_parameters_are_renamed_in_the_groups():
    model = mlp(12, 4)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    _, optimizer = sparsify(model, optimizer, 0.3)
    assert optimizer.param_groups[0]["param_names"] == ["0.values", "0.bias"]


@pytest.mark.parametrize("start", ["random", "magnitude"])
def test_state_the_optimizer_had_is_carried_over_at_the_connections(start):
    model = mlp(12, 16, 4)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    state = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters()}
    model, optimizer = sparsify(model, optimizer, 0.3, start=start)
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        found, had = optimizer.state[layer.values], state[f"{name}.weight"]
        assert found["step"] == 3
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(found[key], had[key].flatten()[layer.flat()])
        assert_same(dict(optimizer.state[layer.bias]), dict(state[f"{name}.bias"]))
    assert len(optimizer.state) == 4
    step(model, optimizer)


def test_magnitude_start_of_a_trained_model_keeps_its_largest_weights():
    model = mlp(12, 16, 4)
    weight = model[0].weight.detach().clone()
    model, _ = sparsify(model, None, {"0": 0.25}, start="magnitude")
    kept = model[0].to_dense()
    assert torch.equal(kept[kept != 0], weight[kept != 0])
    assert kept[kept != 0].abs().min() >= weight[kept == 0].abs().max()


def test_a_gradient_that_was_there_moves_along():
    model = mlp(12, 4)
    optimizer = sgd(model)
    model(torch.randn(8, 12)).square().mean().backward()
    grad = model[0].weight.grad.clone()
    model, optimizer = sparsify(model, optimizer, 0.3)
    assert torch.equal(model[0].values.grad, grad.flatten()[model[0].flat()])


def test_one_linear_at_two_places_stays_one_layer():
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), nn.ModuleDict({"again": shared}), nn.Linear(12, 4))
    model[2].forward = shared.forward
    model, _ = sparsify(model, sgd(model), {"0": 0.3})
    assert model[0] is model[2]["again"]
    assert isinstance(model[0], SparseLinear)


class Boom(RuntimeError):
    pass


def boom(*_, **__):
    raise Boom


def fail_after(function):
    def run(*arguments):
        function(*arguments)
        raise Boom

    return run


@pytest.mark.parametrize(
    "sabotage",
    [
        lambda patch, optimizer: patch.setattr(SparseLinear, "replacing", boom),
        lambda patch, optimizer: patch.setattr(transfer, "replace_parameters", boom),
        lambda patch, optimizer: patch.setattr(replacement, "replace_modules", fail_after(replacement.replace_modules)),
        lambda patch, optimizer: patch.setattr(transfer, "replace_parameters", fail_after(transfer.replace_parameters)),
        lambda patch, optimizer: patch.setattr(api.SparseOptimizer, "__init__", boom),
        lambda patch, optimizer: patch.setattr(optimizer, "register_step_pre_hook", boom),
        lambda patch, optimizer: patch.setattr(optimizer, "register_step_post_hook", boom),
    ],
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_a_call_that_fails_late_leaves_all_as_it_was(monkeypatch, sabotage, kind):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True), 1)
    model = nn.Sequential(encoder, *mlp(12, 16, 4))
    optimizer = kind(model.named_parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 12)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = snapshot(model, optimizer)
    flags = encoder.use_nested_tensor, encoder.layers[0].activation_relu_or_gelu
    sabotage(monkeypatch, optimizer)
    with pytest.raises(Boom):
        api.sparsify(model, optimizer, 0.3)
    monkeypatch.undo()
    assert_same(snapshot(model, optimizer), before)
    assert (encoder.use_nested_tensor, encoder.layers[0].activation_relu_or_gelu) == flags
    optimizer.step(closure)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: (m, sgd(m), 90), ValueError, "density must be in"),
        (
            lambda m: (m, sgd(mlp(2, 2)), 0.1),
            ValueError,
            "^optimizer must hold the parameters of model, got one that holds none of them",
        ),
        (lambda m: (nn.Sequential(nn.ReLU()), sgd(m), 0.1), ValueError, "got none"),
        (
            lambda m: (m, m.parameters(), 0.1),
            TypeError,
            r"optimizer must be a torch.optim.Optimizer, got generator. Make one .*AdamW\(model.parameters\(\)\)",
        ),
        (lambda m: (m, 0.1, None), TypeError, r"got float. If that is the density, name it: sparsify\(model, density="),
        (lambda m: (m, {"0": 0.1}, None), TypeError, "got dict. If that is the density"),
        (lambda m: (m, epsilon(3), None), TypeError, "got epsilon. If that is the density"),
        (lambda m: (sgd(m), m, 0.1), TypeError, r"got Sequential. The order is sparsify\(model, optimizer, density\)"),
        pytest.param(
            lambda m: (m, torch.optim.Muon([m[0].weight]), 0.1),
            TypeError,
            "optimizer must work elementwise, got Muon: it treats a weight as a matrix",
            marks=needs_muon,
        ),
        (lambda m: (m, torch.optim.SparseAdam(m.parameters()), 0.1), TypeError, "got SparseAdam"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_changed(make, error, message):
    model = mlp(12, 16, 4)
    model_argument, optimizer, density = make(model)
    before = [id(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        sparsify(model_argument, optimizer, density)
    assert [id(module) for module in model.modules()] == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"evolution": "SET"},
            TypeError,
            r"evolution must be an Evolution .*: from sparsify import SET; evolution=SET",
        ),
        ({"evolution": "rigl"}, TypeError, r"got 'rigl'. Pass .* name: from sparsify import RigL; evolution=RigL\(\)"),
        ({"evolution": SET}, TypeError, r"got the class SET. Call it: evolution=SET\(\)"),
        ({"evolution": 5}, TypeError, "evolution must be an Evolution .*, got 5"),
        ({"grown_state": "none"}, ValueError, "grown_state must be"),
        ({"seed": 1.5}, TypeError, "seed must be an int or None"),
        ({"start": "best.pt"}, ValueError, r"start must be .*got 'best.pt'. Load the file first: start=torch.load"),
        ({"start": Path("best.pt")}, ValueError, "start must be .*Path. Load the file first"),
    ],
)
def test_bad_options_are_named(options, error, message):
    model = mlp(12, 16, 4)
    with pytest.raises(error, match=message):
        sparsify(model, sgd(model), 0.3, **options)
    assert isinstance(model[0], nn.Linear)


def test_sparsify_twice_says_so():
    model = mlp(12, 16, 4)
    model, optimizer = sparsify(model, sgd(model), 0.3)
    for again in optimizer, sgd(model), None:
        with pytest.raises(
            ValueError, match=r"got SparseLinear in layer '0'. To train it .* To prune it further: trim"
        ):
            sparsify(model, again, 0.3)
    other = mlp(12, 16, 4)
    with pytest.raises(TypeError, match="must not be wrapped already"):
        sparsify(other, optimizer, 0.3)


def test_factored_state_cannot_be_moved_and_says_so():
    model = mlp(12, 16, 4)
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match=r"Adafactor with 'row_var' of shape .* in layer '0'"):
        sparsify(model, optimizer, 0.3)
    assert_same(snapshot(model, optimizer), before)


def test_trim_drops_the_weakest_of_each_sign_for_good():
    model, _ = sparsify(mlp(40, 30, 4), None, 0.3)
    layer = model[0]
    values, dense = layer.values, layer.to_dense().detach()
    before, positive, negative = layer.nnz, int((dense > 0).sum()), int((dense < 0).sum())
    assert trim(model, 0.3) is model
    assert layer.values is values
    assert layer.nnz == before - int(0.3 * positive) - int(0.3 * negative)
    kept = layer.to_dense() != 0
    assert torch.equal(layer.to_dense(), dense * kept)
    for sign in (dense > 0, dense < 0):
        assert dense[sign & ~kept].abs().max() <= dense[sign & kept].abs().min()
    x = torch.randn(5, 40)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))


def test_trim_of_nothing_and_of_everything():
    model, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    nnz = model[0].nnz
    assert trim(model, 0.0)[0].nnz == nnz
    assert trim(model, 1.0)[0].nnz == 0
    x = torch.randn(5, 12, requires_grad=True)
    torch.testing.assert_close(model[0](x), model[0].bias.expand(5, 16))
    model(x).sum().backward()
    with pytest.raises(ValueError, match="drop_fraction must be in"):
        trim(model, 30)
    with pytest.raises(ValueError, match="must hold a sparse layer"):
        trim(mlp(2, 2), 0.3)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder_in_eval_gives_what_it_gives_in_training(grad, norm_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    encoder, optimizer = sparsify(encoder, sgd(encoder), 0.3, evolution=Static())
    x, padding = torch.randn(3, 5, 16), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    expected = encoder(x, src_key_padding_mask=padding)
    expected[~padding].square().mean().backward()
    optimizer.step()
    expected = encoder(x, src_key_padding_mask=padding)
    encoder.eval()
    with torch.set_grad_enabled(grad):
        found = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])
    dense = densify(encoder)
    torch.testing.assert_close(dense(x, src_key_padding_mask=padding)[~padding], expected[~padding])
