import pytest
import torch
from torch import nn

from sparsify import SparseLinear, epsilon, plan, sparsify, summary, uniform
from sparsify._src.conversion.globs import names
from tests.support.models import mlp


def lenet():
    return mlp(784, 300, 100, 10)


def reasons(report):
    return {layer.name: layer.reason for layer in report.layers}


def test_the_plan_is_what_sparsify_does():
    model = lenet()
    report = plan(model, 0.05)
    assert not any(isinstance(module, SparseLinear) for module in model.modules()), "a plan changes nothing"
    sparsify(model, None, 0.05)
    assert [(row.name, row.nnz, row.bytes, row.dense_bytes) for row in summary(model).layers] == [
        (row.name, row.nnz, row.bytes, row.dense_bytes) for row in report.layers
    ]


@pytest.mark.parametrize("density", [0.001, 0.0137, 0.05, 0.1, 0.33333, 0.9, 1.0])
def test_the_budget_is_exact_to_the_connection(density):
    assert sum(row.nnz for row in plan(lenet(), density).layers) == round(density * 266_200)


def test_bytes_are_those_of_the_tensors():
    layer = SparseLinear(20, 12, 0.3)
    (row,) = summary(layer).layers
    assert row.bytes == layer.values.nbytes + sum(buffer.nbytes for buffer in layer.buffers())
    assert row.dense_bytes == 12 * 20 * 4


def test_density_by_glob_first_match_counts_and_the_unnamed_stay_dense():
    report = plan(lenet(), {"0": 0.05, "[02]": 0.5})
    assert [row.nnz for row in report.sparse] == [11_760, 15_000]
    assert reasons(report)["4"] == "no glob of density names it"
    assert reasons(plan(lenet(), {"*": 0.1, "4": 1.0}))["4"] is None
    assert reasons(plan(lenet(), {"4": 1.0, "*": 0.1}))["4"] == "its density is 1"


def test_density_by_callable_and_by_another_distribution():
    assert [row.nnz for row in plan(lenet(), epsilon(2)).layers] == [2 * 1084, 2 * 400, 2 * 110]
    assert [row.nnz for row in plan(lenet(), 0.1, distribution=uniform).layers] == [23_520, 3000, 100]


def test_globs_name_layers_and_what_contains_them():
    assert names("encoder", "encoder.0.fc")
    assert names("encoder.*", "encoder.0.fc")
    assert names("*.fc", "encoder.0.fc")
    assert not names("fc", "encoder.0.fc")
    assert not names("enc", "encoder.0.fc")


@pytest.mark.parametrize("skip", [("4",), "4", ["[4]"]])
def test_skip(skip):
    assert reasons(plan(lenet(), 0.1, skip=skip)) == {"0": None, "2": None, "4": "skip names it"}


class OwnForward(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class OwnAttention(nn.MultiheadAttention):
    def forward(self, query, key, value):
        return query


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.own = OwnForward(8, 8)
        self.patched = nn.Linear(8, 8)
        self.patched.forward = lambda input: input
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.complex = nn.Linear(8, 8, dtype=torch.complex64)
        self.hooked = nn.Linear(8, 8)
        self.hooked.weight.register_hook(lambda grad: grad)
        self.tied = nn.Linear(8, 12)
        self.embedding = nn.Embedding(12, 8)
        self.embedding.weight = self.tied.weight
        self.own_attention = OwnAttention(8, 2)
        self.conv = nn.Conv2d(3, 4, 5)
        self.lstm = nn.LSTM(4, 4)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.buffered = nn.Linear(8, 8)
        self.buffered.register_buffer("scale", torch.ones(8))
        self.elsewhere = nn.Linear(8, 8)


def test_every_layer_left_dense_has_its_reason():
    zoo = Zoo()
    held = [p for name, p in zoo.named_parameters() if not name.startswith("elsewhere")]
    found = reasons(plan(zoo, 0.5, optimizer=torch.optim.SGD(held, 0.1)))
    assert found.pop("plain") is None
    assert found["frozen"] == "it is frozen"
    assert found["own"] == found["patched"] == "it has a forward of its own"
    assert "parametrization" in found["normed"]
    assert found["complex"] == "its dtype is torch.complex64"
    assert found["hooked"] == "its weight has gradient hooks"
    assert found["buffered"] == "it holds more than a weight and a bias"
    assert "tied" in found["tied"]
    assert "MultiheadAttention reads" in found["own_attention.out_proj"]
    assert found["elsewhere"] == "the optimizer does not hold it"
    assert found["conv"] == "kinds=(nn.Linear, nn.Conv2d) makes it sparse"
    for name in ("embedding", "own_attention", "lstm", "bilinear"):
        assert found[name] == "only linear layers and convolutions become sparse"


def test_the_report_prints_as_a_table():
    lines = str(plan(lenet(), 0.1)).splitlines()
    assert lines[0].split()[:4] == ["layer", "shape", "density", "connections"]
    assert lines[1].split()[:6] == ["0", "300", "x", "784", "0.07957", "18,714"]
    assert lines[3].endswith("Linear left dense: its density is 1")
    assert lines[4].split()[:5] == ["whole", "model", "266,200", "0.1", "26,620"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"density": 0}, ValueError, "density must be in"),
        (
            {"density": 90},
            ValueError,
            r"For 90 % of the weights pass density=0.9, for .*epsilon\(90\), for 90 % sparsity pass density=0.1",
        ),
        ({"density": "0.1"}, TypeError, "density must be a number"),
        ({"density": {"0": 2.0}}, ValueError, "density must be in .* for '0'"),
        ({"density": {"head": 0.1}}, ValueError, "density must name linear layers, got 'head'"),
        ({"density": lambda shape: 0}, ValueError, "density must be in .* in layer '0'"),
        ({"density": 0.1, "distribution": lambda *_: {"0": 0.1}}, ValueError, r"got none for \['2', '4'\]"),
        ({"density": 0.1, "skip": ["head"]}, ValueError, "skip must name linear layers, got 'head'"),
        ({"density": 0.1, "skip": [3]}, TypeError, "skip must hold module-name globs, got 3"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(lenet(), **arguments)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.LazyLinear(5), ValueError, "uninitialized LazyLinear.*Run one forward pass first"),
        (nn.Sequential(SparseLinear(5, 5, 0.5)), ValueError, "model must be dense, got SparseLinear in layer '0'"),
        ("model", TypeError, "model must be a torch.nn.Module, got str"),
    ],
)
def test_models_that_cannot_be_planned(model, error, message):
    with pytest.raises(error, match=message):
        plan(model, 0.5)


def test_summary_counts_dead_units():
    layer = SparseLinear(4, 3, 2 / 12)
    layer.set_topology(torch.tensor([1, 9]), torch.ones(2), None)  # (0, 1) and (2, 1)
    [row] = summary(layer).layers
    assert (row.without_inputs, row.without_outputs) == (1, 3)
    assert "1 + 3" in str(summary(layer))
    [planned] = plan(nn.Linear(40, 30), 0.1).layers
    assert planned.without_inputs is planned.without_outputs is None


def test_the_total_counts_tied_weights_once():
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False))
    model[2].weight = model[0].weight
    report = plan(model, 0.5)
    assert [row.name for row in report.layers] == ["0", "1", "2"]
    whole = report.totals[-1]
    assert (whole.shape, whole.nnz, whole.density) == ((160,), 128, 0.8)
    assert (whole.bytes, whole.dense_bytes) == (96 * 4 + 32 * 4 + 4 * (96 + 18), 640)


def test_the_plan_says_where_a_layer_would_be_larger_and_slower_than_dense():
    model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 4), nn.Linear(4, 2000))
    report = plan(model, {"0": 0.2, "1": 0.5, "2": 0.3})
    for row in report.layers:
        nnz, (outs, ins) = row.nnz, row.shape
        larger = 4 * nnz + 4 * (3 * nnz + outs + 1 + ins + 1) > 4 * outs * ins
        assert row.is_worse == (larger and row.speed_up < 1)
    assert [row.is_worse for row in report.layers[:2]] == [False, True]  # the first is slower, and smaller
    lines = str(report).splitlines()
    assert lines[1].endswith("  slower than dense")
    assert lines[2].endswith("  larger and slower than dense")
    model, _ = sparsify(model, None, {"1": 0.5})
    assert str(summary(model)).splitlines()[2].endswith("  larger and slower than dense")
    assert [row.is_worse for row in summary(model).layers] == [False, True, False]


def test_the_plan_is_quiet_where_a_layer_gains():
    report = plan(nn.Linear(2000, 1000), 0.02)
    assert not report.layers[0].is_worse
    assert "slower" not in str(report)
