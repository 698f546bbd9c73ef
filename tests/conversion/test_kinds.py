"""`kinds`: convolutions become sparse beside linear layers, or alone, by the same rules."""

import copy
import io
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, RMSprop

from sparsify import (
    GMP,
    SET,
    Evolution,
    GraNet,
    RigL,
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseLinear,
    Static,
    densify,
    epsilon,
    erdos_renyi,
    fan_in_uniform,
    plan,
    sparsify,
    summary,
    trim,
    uniform,
)
from sparsify._src.conversion.linear_maps import KINDS
from sparsify._src.evolution import growth
from sparsify.evolution import by_gradient, by_gradient_among, mixed, saliency, sparing_units, uniformly
from tests.support.comparing import assert_same, snapshot
from tests.support.convolutions import images, network

SPARSE = SparseLinear, SparseConv1d, SparseConv2d, SparseConv3d
LAYERS = ("0", "2", "5")
"""The names of those of `network` that can be sparse."""


def reasons(report):
    return {row.name: row.reason for row in report.layers}


def sparse_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SPARSE)]


def train(model, optimizer, steps, first=0):
    for number in range(first, first + steps):
        inputs, labels = images(number)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def made(evolution, optimizer=lambda p: Adam(p, 0.01), seed=1, density=0.3, **options):
    torch.manual_seed(seed)
    model = network()
    return sparsify(
        model, optimizer(model.parameters()), density, evolution=evolution, kinds=KINDS, seed=seed, **options
    )


# Which layers


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ((nn.Linear, nn.Conv2d), ["0", "2", "5"]),
        (nn.Conv2d, ["0", "2"]),
        ([nn.Conv2d], ["0", "2"]),
        ({nn.Linear, nn.Conv1d}, ["5"]),
        (KINDS, ["0", "2", "5"]),
    ],
)
def test_the_kinds_that_are_named_become_sparse(kinds, names):
    model = network()
    assert [row.name for row in plan(model, 0.3, kinds=kinds).sparse] == names
    model, _ = sparsify(model, None, 0.3, kinds=kinds)
    assert sparse_names(model) == names


def test_without_kinds_convolutions_stay_dense_and_the_plan_says_how_not():
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3), nn.Linear(9, 9))
    found = reasons(plan(model, 0.5))
    for name, kind in ("0", "Conv1d"), ("1", "Conv2d"), ("2", "Conv3d"):
        assert found[name] == f"kinds=(nn.Linear, nn.{kind}) makes it sparse"
    assert reasons(plan(model, 0.5, kinds=nn.Conv2d))["3"] == "kinds does not name nn.Linear"
    model, _ = sparsify(model, None, 0.5)
    assert sparse_names(model) == ["3"]


def test_each_kind_becomes_its_own_sparse_layer():
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3), nn.Linear(9, 9))
    model, _ = sparsify(model, None, {"*": 0.5}, kinds=KINDS)
    assert [type(layer) for layer in model] == [SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear]
    bare, _ = sparsify(nn.Conv2d(4, 8, 3), None, 0.5, kinds=nn.Conv2d)
    assert type(bare) is SparseConv2d


@pytest.mark.parametrize(
    "kinds", [nn.ConvTranspose2d, nn.LSTM, nn.Module, "nn.Conv2d", None, (), [nn.Conv2d, 3], SparseConv2d, {}, 7]
)
def test_kinds_of_a_wrong_type_are_refused(kinds):
    model = network()
    before = list(model)
    for call in (lambda: plan(model, 0.3, kinds=kinds), lambda: sparsify(model, None, 0.3, kinds=kinds)):
        with pytest.raises(TypeError, match=r"kinds must hold some of nn\.Linear, nn\.Conv1d, nn\.Conv2d, nn\.Conv3d"):
            call()
    assert list(model) == before


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


class OwnPadding(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(F.pad(input, (1, 1, 1, 1)), weight, bias)


class OwnName(nn.Conv2d):
    def extra_repr(self):
        return "mine"


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(4, 4, 3)
        self.named = OwnName(4, 4, 3)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.single = nn.Conv2d(1, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.multiplied = nn.Conv1d(4, 8, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(4, 4, 3)
        self.frozen = nn.Conv2d(4, 4, 3).requires_grad_(False)
        self.own = OwnForward(4, 4, 3)
        self.padded = OwnPadding(4, 4, 3)
        self.patched = nn.Conv2d(4, 4, 3)
        self.patched.forward = lambda input: input
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.spectral = nn.utils.spectral_norm(nn.Conv2d(4, 4, 3))
        self.pruned = prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5)
        self.complex = nn.Conv2d(4, 4, 3, dtype=torch.complex64)
        self.hooked = nn.Conv2d(4, 4, 3)
        self.hooked.weight.register_hook(lambda grad: grad)
        self.tied, self.other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.tied.weight = self.other.weight
        self.buffered = nn.Conv2d(4, 4, 3)
        self.buffered.register_buffer("scale", torch.ones(4))
        self.elsewhere = nn.Conv2d(4, 4, 3)


def test_every_convolution_left_dense_has_its_reason():
    zoo = Zoo()
    held = [p for name, p in zoo.named_parameters() if not name.startswith("elsewhere")]
    found = reasons(plan(zoo, {"*": 0.5}, optimizer=SGD(held, 0.1), kinds=KINDS))
    expected = dict.fromkeys(("plain", "named", "grouped", "single"))
    expected |= dict.fromkeys(
        ("depthwise", "multiplied"), "it is depthwise: each of its filters reads a single channel"
    )
    expected |= {
        "transposed": "transposed convolutions stay dense",
        "frozen": "it is frozen",
        "own": "it has a forward of its own",
        "patched": "it has a forward of its own",
        "padded": "its class OwnPadding has methods of its own: _conv_forward",
        "normed": "its weight is computed from others (parametrization, weight norm)",
        "spectral": "its weight is computed from others (parametrization, weight norm)",
        "pruned": 'its pruning is not permanent yet: prune.remove(layer, "weight") makes it so',
        "complex": "its dtype is torch.complex64",
        "hooked": "its weight has gradient hooks",
        "tied": "its weight is tied to another module's",
        "other": "its weight is tied to another module's",
        "buffered": "it holds more than a weight and a bias",
        "elsewhere": "the optimizer does not hold it",
    }
    assert found == expected
    optimizer, kinds = SGD(held, 0.1), {name: type(module) for name, module in zoo.named_children()}
    zoo, _ = sparsify(zoo, optimizer, {"*": 0.5}, kinds=KINDS)
    for name, reason in expected.items():
        assert type(getattr(zoo, name)) is (SparseConv2d if reason is None else kinds[name])


def test_lazy_convolutions_must_know_their_shapes():
    for call in plan, lambda *given, **options: sparsify(given[0], None, *given[1:], **options):
        with pytest.raises(ValueError, match=r"uninitialized LazyConv2d in layer '1'\. Run one forward pass first"):
            call(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3)), 0.3, kinds=nn.Conv2d)
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    model(torch.randn(1, 5, 6, 6))
    model, _ = sparsify(model, None, 0.3, kinds=nn.Conv2d)
    assert model[0].in_channels == 5


FROZEN = network().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), {}, "must hold an nn.Conv2d that can be sparse, .* depthwise"),
        (nn.Sequential(nn.Linear(4, 4)), {}, r"an nn.Conv2d that can .* in Linear. kinds=\(nn.Linear,\) makes these"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), {}, "Convolutions that are not transposed can be"),
        (nn.Sequential(nn.Conv2d(4, 4, 3)), {"kinds": nn.Linear}, r"kinds=\(nn.Conv2d,\) makes these sparse"),
        (FROZEN, {}, "model must have convolutions that train, got all of its 2 convolutions frozen"),
        (FROZEN, {"kinds": KINDS}, "model must have layers that train, got all of its 3 layers frozen"),
        (network(), {"skip": ["0", "2"]}, "skip must leave a convolution to become sparse"),
        (network(), {"density": {}}, "density must name a convolution, got none"),
        (network(), {"skip": ["head"]}, "skip must name layers, got 'head', which names none of .'0', '2'"),
        (network(), {"density": {"head": 0.1}}, "density must name layers, got 'head'"),
        (nn.Sequential(OwnForward(4, 4, 3)), {}, "forward of its own. Make it an nn.Conv2d, and do in"),
    ],
)
def test_where_nothing_can_be_sparse_the_error_speaks_of_these_kinds(model, options, message):
    with pytest.raises(ValueError, match=message):
        sparsify(model, None, **{"density": 0.3, "kinds": nn.Conv2d, **options})


# How much


def test_the_budget_is_shared_by_the_erdos_renyi_kernel():
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 128, 1), nn.Conv1d(32, 64, 5), nn.Linear(256, 100))
    report = plan(model, 0.2, kinds=KINDS)
    weights = [layer.weight for layer in model]
    ratios = [sum(weight.shape) / weight.numel() for weight in weights]
    scale = 0.2 * sum(w.numel() for w in weights) / sum(r * w.numel() for r, w in zip(ratios, weights, strict=True))
    for row, ratio, weight in zip(report.layers, ratios, weights, strict=True):
        assert row.nnz == round(scale * ratio * weight.numel())
        assert row.shape == tuple(weight.shape)
    assert abs(report.totals[-1].nnz - 0.2 * sum(w.numel() for w in weights)) <= 2
    sparse, _ = sparsify(model, None, 0.2, kinds=KINDS)
    assert [layer.nnz for layer in sparse] == [row.nnz for row in report.layers]
    assert [layer.nnz for layer in sparse] == [row.nnz for row in summary(sparse).layers]


def test_small_first_convolutions_come_out_dense_and_the_budget_holds():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(64, 128, 3), nn.Conv2d(128, 128, 3))
    report = plan(model, 0.3, kinds=nn.Conv2d)
    assert report.layers[0].reason == "its density is 1"
    places = sum(layer.weight.numel() for layer in model)
    assert abs(sum(row.nnz for row in report.layers) - 0.3 * places) <= 2


def test_other_densities():
    shapes = {"0": (8, 3, 3, 3), "2": (12, 4, 3, 3), "5": (5, 108)}
    assert erdos_renyi(shapes, 0.5).keys() == shapes.keys()
    assert set(uniform(shapes, 0.5).values()) == {0.5}
    rows = plan(network(), epsilon(2), kinds=KINDS).layers
    for row in rows:
        numel, total = torch.Size(row.shape).numel(), sum(row.shape)
        assert row.nnz == min(numel, round(2 * total))
    seen = []
    plan(network(), lambda shape: seen.append(shape) or 0.5, kinds=KINDS)
    assert set(seen) == set(shapes.values())
    given = {}
    plan(network(), 0.4, kinds=KINDS, distribution=lambda shapes, density: given.update(shapes) or uniform(shapes, 0.4))
    assert given == shapes
    by_name = reasons(plan(network(), {"0": 0.5, "[2]": 0.2}, kinds=KINDS))
    assert by_name == {"0": None, "2": None, "5": "no glob of density names it"}
    skipped = reasons(plan(network(), 0.4, kinds=KINDS, skip=["2"]))
    assert skipped == {"0": None, "2": "skip names it", "5": None}


def test_a_dead_channel_is_one_that_no_connection_reads_or_reaches():
    conv = nn.Conv2d(6, 4, 3, groups=2)  # each filter reads channels 0 to 2, or 3 to 5
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 1, 0, 0] = conv.weight[0, 1, 2, 2] = conv.weight[2, 0, 1, 1] = conv.weight[2, 1, 1, 1] = 1.0
    model, _ = sparsify(nn.Sequential(conv), None, start="nonzero", kinds=nn.Conv2d)
    [row] = summary(model).layers
    assert (row.without_inputs, row.without_outputs) == (2, 3)  # outputs 1 and 3; inputs 0, 2 and 5
    assert row.kind == "SparseConv2d"
    assert row.shape == (4, 3, 3, 3)
    assert "2 + 3" in str(summary(model))
    full, _ = sparsify(nn.Sequential(nn.Conv1d(3, 4, 5), nn.Linear(4, 4)), None, {"0": 0.9}, kinds=KINDS)
    assert (summary(full).layers[0].without_inputs, summary(full).layers[0].without_outputs) == (0, 0)


# Starts


def pruned_network(share=0.6):
    torch.manual_seed(3)
    model = network()
    with torch.no_grad():
        for name in LAYERS:
            weight = model[int(name)].weight
            weight *= torch.rand_like(weight) > share
    return model


def test_the_largest_weights_of_a_trained_model_stay():
    model = network()
    before = [model[int(name)].weight.detach().clone() for name in LAYERS]
    model, _ = sparsify(model, None, 0.3, start="magnitude", kinds=KINDS)
    for name, weight in zip(LAYERS, before, strict=True):
        layer = model[int(name)]
        expected = weight.abs().flatten().topk(layer.nnz).indices.sort().values
        assert torch.equal(layer.flat(), expected)
        assert torch.equal(layer.values, weight.flatten()[expected])


def test_the_weights_of_a_pruned_model_that_are_not_zero_stay():
    model, inputs = pruned_network(), images(0)[0]
    expected = model(inputs)
    model, _ = sparsify(model, None, start="nonzero", kinds=KINDS)
    assert sparse_names(model) == list(LAYERS)
    torch.testing.assert_close(model(inputs), expected)
    torch.testing.assert_close(densify(model)(inputs), expected)


def test_a_sparse_model_or_its_state_dict_says_which_layers_are_sparse():
    source, _ = sparsify(network(), None, 0.3, kinds=nn.Conv2d)
    own, _ = sparsify(network(), None, start=source)  # without kinds: the source says it
    assert sparse_names(own) == ["0", "2"]
    for name in "0", "2":
        assert torch.equal(own.get_submodule(name).flat(), source.get_submodule(name).flat())
    loaded, _ = sparsify(network(), None, start=source.state_dict())
    assert sparse_names(loaded) == ["0", "2"]
    inputs = images(0)[0]
    assert torch.equal(loaded(inputs), source(inputs))


def test_a_start_of_other_shapes_is_refused():
    source, _ = sparsify(nn.Sequential(nn.Conv2d(3, 8, 3)), None, {"0": 0.3}, kinds=nn.Conv2d)
    others = nn.Conv2d(3, 8, 5), nn.Conv2d(4, 8, 3), nn.Conv2d(3, 9, 3), nn.Conv2d(27, 8, 1), nn.Conv2d(3, 8, (9, 1))
    for other in (*others, nn.Conv1d(9, 8, 3), nn.Linear(27, 8)):
        with pytest.raises(ValueError, match=r"model must have the shapes of start, got .*, there \(8, 3, 3, 3\)"):
            sparsify(nn.Sequential(other), None, start=source)
    for other in nn.Conv2d(3, 9, 3), nn.Conv2d(2, 8, 3), nn.Linear(20, 8):  # a state dict knows outputs and indices
        with pytest.raises(ValueError, match="must"):
            sparsify(nn.Sequential(other), None, start=source.state_dict())


def test_models_on_the_meta_device():
    with torch.device("meta"):
        model = network(torch.float32)
    optimizer = Adam(model.parameters(), 0.01)
    model, optimizer = sparsify(model, optimizer, 0.3, kinds=KINDS, seed=1)
    assert sparse_names(model) == list(LAYERS)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    bound = (model[2].density * 36) ** -0.5
    assert 0 < model[2].values.abs().max() <= bound
    inputs, labels = images(0, dtype=torch.float32)
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


# Training


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.1, momentum=0.9),
        lambda p: Adam(p, 0.01, amsgrad=True),
        lambda p: AdamW(p, 0.01, foreach=True),
        lambda p: RMSprop(p, 0.01, centered=True, momentum=0.9),
        lambda p: Adagrad(p, 0.05),
        lambda p: Adadelta(p),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta"],
)
@pytest.mark.parametrize("start", ["magnitude", "random"])
def test_the_state_of_the_optimizer_moves_with_the_weights(start, make, form):
    model = network().to(memory_format=form)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    names = {name: model[int(name)].weight for name in LAYERS}
    before = {name: copy.deepcopy(optimizer.state[weight]) for name, weight in names.items()}
    gradients = {name: weight.grad.clone() for name, weight in names.items()}
    del names
    model, optimizer = sparsify(model, optimizer, 0.3, start=start, kinds=KINDS)
    for name in LAYERS:
        layer = model[int(name)]
        assert torch.equal(layer.values.grad, gradients[name].flatten()[layer.flat()])
        state = optimizer.state[layer.values]
        assert state.keys() == before[name].keys()
        for key, old in before[name].items():
            moved = torch.is_tensor(old) and old.dim() > 0
            assert_same(state[key], old.flatten()[layer.flat()] if moved else old)
    train(model, optimizer, 2)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}


class Twin:
    """The dense network whose inactive weights are held at zero by hand."""

    def __init__(self, sparse, make):
        self.model = densify(sparse)
        self.optimizer = make(self.model.parameters())
        self.pairs = [(sparse[int(name)], self.model[int(name)].weight) for name in LAYERS]
        self.active = {}

    def step(self, number):
        inputs, labels = images(number)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(inputs), labels)
        loss.backward()
        for layer, weight in self.pairs:
            self.active[weight] = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, layer.flat(), True)
            weight.grad.view(-1).mul_(self.active[weight])
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def follow(self):
        for layer, weight in self.pairs:
            now = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, layer.flat(), True)
            gone, new = self.active[weight] & ~now, now & ~self.active[weight]
            assert gone.any()
            weight.view(-1)[gone] = 0
            for buffer in self.optimizer.state[weight].values():
                if torch.is_tensor(buffer) and buffer.shape == weight.shape:
                    buffer.view(-1)[gone | new] = 0


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: Adam(p, 0.01)], ids=["SGD", "Adam"])
def test_trains_as_the_dense_twin_does(make):
    model, optimizer = made(SET(interval=3), make)
    twin = Twin(model, make)
    for number in range(13):
        inputs, labels = images(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        torch.testing.assert_close(loss, twin.step(number))
        optimizer.step()
        if (number + 1) % 3 == 0:
            twin.follow()
        for layer, weight in twin.pairs:
            torch.testing.assert_close(layer.to_dense().view_as(weight), weight)
    assert [record.step for record in optimizer.history] == [3, 6, 9, 12]
    for name, count in optimizer.history[-1].grown.items():
        assert count > 0, name


def dense_gradients(model, batches):
    """Of the dense twin, by name, after these batches."""
    twin = densify(model)
    for number in batches:
        inputs, labels = images(number)
        F.cross_entropy(twin(inputs), labels).backward()
    return {name: twin[int(name)].weight.grad.flatten() for name in LAYERS}


@pytest.mark.parametrize("tile", [1 << 22, 40])
@pytest.mark.parametrize("passes", [1, 3])
def test_growth_is_where_the_gradient_of_the_dense_weight_is_largest(passes, tile, monkeypatch):
    monkeypatch.setattr(growth, "TILE", tile)
    model, optimizer = made(Evolution(interval=1, drop_fraction=0.3, grow=by_gradient), lambda p: SGD(p, 1e-9))
    before = {name: model[int(name)].flat() for name in LAYERS}
    expected = dense_gradients(model, range(passes))
    for number in range(passes):
        inputs, labels = images(number)
        F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    for name in LAYERS:
        layer, grown = model[int(name)], optimizer.history[-1].grown[name]
        gradient = expected[name].abs()
        gradient[before[name]] = -1
        best = set(gradient.topk(grown).indices.tolist())
        assert grown > 0
        assert set(layer.flat().tolist()) - set(before[name].tolist()) == best


def test_growth_by_gradient_of_images_of_several_sizes(monkeypatch):
    monkeypatch.setattr(growth, "TILE", 60)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, dtype=torch.float64), nn.AdaptiveAvgPool2d(1))
    evolution = Evolution(interval=1, drop_fraction=0.3, grow=by_gradient)
    model, optimizer = sparsify(model, SGD(model.parameters(), 1e-9), 0.4, evolution=evolution, kinds=nn.Conv2d)
    twin, before = densify(model), model[0].flat()
    for size in (5, 6), (9, 4), (1, 1):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        for each in model, twin:
            each(x).square().sum().backward()
    optimizer.step()
    gradient = twin[0].weight.grad.abs().flatten()
    gradient[before] = -1
    best = set(gradient.topk(optimizer.history[-1].grown["0"]).indices.tolist())
    assert set(model[0].flat().tolist()) - set(before.tolist()) == best


def test_candidates_are_compared_by_the_gradient_of_the_dense_weight():
    everywhere = Evolution(interval=1, drop_fraction=0.3, grow=by_gradient_among(10_000))
    found = []
    for evolution in everywhere, Evolution(interval=1, drop_fraction=0.3, grow=by_gradient):
        model, optimizer = made(evolution, lambda p: SGD(p, 1e-9))
        train(model, optimizer, 1)
        assert len(optimizer.history[-1].grown) == 3
        found.append([model[int(name)].flat() for name in LAYERS])
    assert_same(*found)


def test_padding_of_other_modes_counts_in_the_dense_gradient_too():
    for mode in "reflect", "replicate", "circular":
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(3, 8, 4, padding="same", padding_mode=mode, dtype=torch.float64))
        evolution = Evolution(interval=1, drop_fraction=0.3, grow=by_gradient)
        model, optimizer = sparsify(model, SGD(model.parameters(), 1e-9), 0.3, evolution=evolution, kinds=nn.Conv2d)
        twin, before = densify(model), model[0].flat()
        inputs = images(0)[0]
        for each in model, twin:
            each(inputs).tanh().sum().backward()
        optimizer.step()
        gradient = twin[0].weight.grad.abs().flatten()
        gradient[before] = -1
        best = set(gradient.topk(optimizer.history[-1].grown["0"]).indices.tolist())
        assert set(model[0].flat().tolist()) - set(before.tolist()) == best


ALGORITHMS = {
    "SET": SET(interval=2),
    "RigL": RigL(interval=2),
    "among": RigL(interval=2, grow=mixed(by_gradient_among(4), uniformly, share=0.5)),
    "saliency": Evolution(interval=2, drop=sparing_units(saliency)),
    "GMP": GMP(until=8, interval=2),
    "GraNet": GraNet(until=8, interval=2),
    "Static": Static(),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_resumes_bit_for_bit(name):
    model, optimizer = made(ALGORITHMS[name], grown_values=fan_in_uniform)
    train(model, optimizer, 5)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(model, optimizer, 6, first=5)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, resumed = made(ALGORITHMS[name], seed=7, grown_values=fan_in_uniform)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    resumed.seed = optimizer.seed if hasattr(optimizer, "seed") else None
    train(other, resumed, 6, first=5)
    assert_same(other.state_dict(), model.state_dict())
    assert_same(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("name", ["GMP", "GraNet"])
def test_pruning_ends_at_the_density(name):
    model, optimizer = made(ALGORITHMS[name])
    train(model, optimizer, 10)
    places = sum(model[int(each)].in_features * model[int(each)].out_features for each in LAYERS)
    assert abs(sum(model[int(each)].nnz for each in LAYERS) - 0.3 * places) <= 3
    expected = {row.name: row.nnz for row in plan(network(), 0.3, kinds=KINDS).layers}
    assert {each: model[int(each)].nnz for each in LAYERS} == expected


def test_a_model_whose_convolutions_are_sparse_is_pruned_further_and_goes_on():
    model, _ = sparsify(network(), None, 0.5, kinds=KINDS)
    optimizer = Adam(model.parameters(), 0.01)
    model, optimizer = sparsify(model, optimizer, 0.2, evolution=GMP(until=6, interval=2))
    train(model, optimizer, 8)
    places = sum(model[int(each)].in_features * model[int(each)].out_features for each in LAYERS)
    assert abs(sum(model[int(each)].nnz for each in LAYERS) - 0.2 * places) <= 3
    model, optimizer = sparsify(model, optimizer, evolution=RigL(interval=1))
    train(model, optimizer, 2)
    assert set(optimizer.history[-1].grown) == set(LAYERS)


def test_convolutions_are_trimmed_with_the_optimizer():
    model, optimizer = made(Static())
    train(model, optimizer, 2)
    before = {name: (model[int(name)].nnz, copy.deepcopy(optimizer.state[model[int(name)].values])) for name in LAYERS}
    flats = {name: model[int(name)].flat() for name in LAYERS}
    trim(model, 0.5, optimizer)
    for name in LAYERS:
        layer, (nnz, state) = model[int(name)], before[name]
        assert abs(layer.nnz - nnz / 2) <= 1
        kept = torch.isin(flats[name], layer.flat())
        assert torch.equal(optimizer.state[layer.values]["exp_avg"], state["exp_avg"][kept])
    train(model, optimizer, 1)


def test_a_call_that_fails_leaves_everything_as_it_was(monkeypatch):
    model = network()
    optimizer = Adam(model.parameters(), 0.01)
    train(model, optimizer, 2)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="density must be in"):
        sparsify(model, optimizer, {"0": 0.3, "2": 3.0}, kinds=KINDS)
    assert_same(snapshot(model, optimizer), before)

    def fail(*_):
        raise RuntimeError("late")

    monkeypatch.setattr("sparsify._src.layers.model_loading.watch", fail)
    with pytest.raises(RuntimeError, match="late"):
        sparsify(model, optimizer, 0.3, kinds=KINDS)
    assert_same(snapshot(model, optimizer), before)
    monkeypatch.undo()
    with ExitStack():
        model, optimizer = sparsify(model, optimizer, 0.3, kinds=KINDS)
    train(model, optimizer, 1)


def test_a_dense_model_and_its_sparse_form_exchange_checkpoints():
    model, optimizer = made(SET(interval=2))
    train(model, optimizer, 3)
    dense = densify(model)
    inputs = images(0)[0]
    torch.testing.assert_close(dense(inputs), model(inputs))
    assert dense.state_dict().keys() == network().state_dict().keys()
    again, _ = sparsify(network(), None, start=model, kinds=KINDS)
    with torch.no_grad():
        again.load_state_dict(dense.state_dict())
    assert torch.equal(again(inputs), model(inputs))
    back, _ = sparsify(dense, None, start="nonzero", kinds=KINDS)
    torch.testing.assert_close(back(inputs), model(inputs))


def test_averages_of_convolutions_evolve_along():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model, optimizer = made(SET(interval=2))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for number in range(6):
        train(model, optimizer, 1, first=number)
        average.update_parameters(model)
    for name in LAYERS:
        assert torch.equal(average.module[int(name)].flat(), model[int(name)].flat())
    inputs = images(0)[0]
    torch.testing.assert_close(average(inputs), densify(average.module)(inputs))


def test_a_depthwise_convolution_that_no_kind_names_has_its_own_reason():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    reasons = [row.reason for row in plan(model, 0.5).layers]
    assert reasons[0] == "it is depthwise: each of its filters reads a single channel"
    assert reasons[1] == "kinds=(nn.Linear, nn.Conv2d) makes it sparse"
