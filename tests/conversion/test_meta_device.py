"""Models built on the meta device: only their connections are ever allocated."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparsify import SET, SparseConv2d, SparseLinear, sparsify
from tests.support.comparing import assert_same
from tests.support.models import mlp


def on_meta(make):
    with torch.device("meta"):
        return make()


def test_a_model_on_meta_becomes_sparse_and_trains():
    model = on_meta(lambda: mlp(40, 30, 5))
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer = sparsify(model, optimizer, 0.2, evolution=SET(interval=2), seed=1)
    assert all(tensor.device.type == "cpu" for tensor in [*model.parameters(), *model.buffers()])
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    for _ in range(4):
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
    assert len(optimizer.history) == 2
    assert model[0].values.abs().sum() > 0


def test_values_have_the_scale_of_the_sparse_fan_in_and_biases_that_of_the_dense():
    layer, _ = sparsify(on_meta(lambda: nn.Linear(1000, 2000)), None, 0.1)
    values, bias = layer.values.detach(), layer.bias.detach()
    assert values.abs().max() == pytest.approx(0.1, rel=0.01)  # a fan-in of 100
    assert values.std() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert bias.abs().max() == pytest.approx(1000**-0.5, rel=0.01)


@pytest.mark.parametrize(
    "make", [lambda **on: SparseLinear(8, 4, 0.5, **on), lambda **on: SparseConv2d(8, 4, 3, 0.5, **on)]
)
def test_a_sparse_layer_cannot_be_made_there(make):
    for call in (lambda: make(device="meta")), (lambda: on_meta(make)):
        with pytest.raises(ValueError, match="device must have memory, got meta"):
            call()
    assert on_meta(lambda: make(device="cpu")).values.device.type == "cpu"


def test_topology_and_values_follow_the_seed():
    first, second, other = (sparsify(on_meta(lambda: mlp(40, 30, 5)), None, 0.2, seed=s)[0] for s in (1, 1, 2))
    assert_same(first.state_dict(), second.state_dict())
    assert not torch.equal(first[0].values, other[0].values)


def test_what_stays_dense_initialises_itself():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.attention = nn.MultiheadAttention(16, 2)
            self.norm = nn.BatchNorm1d(16)
            self.hidden = nn.Linear(16, 64, bias=False)
            self.frozen = nn.Linear(64, 16).requires_grad_(False)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.embedding.weight  # tied

    torch.manual_seed(0)
    model = on_meta(Net)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), {"hidden": 0.1})
    assert not any(tensor.is_meta or tensor.isnan().any() for tensor in [*model.parameters(), *model.buffers()])
    assert isinstance(model.hidden, SparseLinear)
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.std() > 0
    assert model.norm.running_var.tolist() == [1] * 16
    assert model.attention.out_proj.bias.tolist() == [0] * 16, "nn.MultiheadAttention has the last word"
    assert not model.frozen.weight.requires_grad
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(20, 10)
        self.scale = nn.Parameter(torch.ones(10))
        self.register_buffer("shift", torch.zeros(10))


class Forgetful(Bare):
    def reset_parameters(self):
        nn.init.ones_(self.scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Bare, r"got scale, shift in modules without reset_parameters\(\)"),
        (lambda: nn.Sequential(Bare()), r"got 0\.scale, 0\.shift"),
        (lambda: nn.Sequential(Forgetful()), r"Forgetful.reset_parameters\(\) must initialise 0\.shift"),
    ],
)
def test_what_cannot_initialise_itself_is_named_and_nothing_changed(make, message):
    model = on_meta(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = (
        [(id(p), p.is_meta) for p in [*model.parameters(), *model.buffers()]],
        optimizer.param_groups[0]["params"][:],
    )
    with pytest.raises(ValueError, match=message):
        sparsify(model, optimizer, 0.2)
    assert before[0] == [(id(p), p.is_meta) for p in [*model.parameters(), *model.buffers()]]
    assert all(a is b for a, b in zip(before[1], optimizer.param_groups[0]["params"], strict=True))


def test_largest_weights_of_a_model_without_values_are_refused():
    model = on_meta(lambda: mlp(40, 30, 5))
    with pytest.raises(ValueError, match="start must be \"random\" for a layer on the meta device, got 'magnitude'"):
        sparsify(model, None, 0.2, start="magnitude")
    assert isinstance(model[0], nn.Linear)


def test_a_part_of_the_model_may_be_on_meta():
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), on_meta(lambda: nn.Linear(30, 40)))
    dense, bias = model[0].weight.detach().clone(), model[0].bias
    model, _ = sparsify(model, None, 0.5)
    kept = model[0].to_dense() != 0
    scale = (600 / model[0].nnz) ** 0.5
    assert torch.allclose(model[0].to_dense()[kept], dense[kept] * scale)
    assert model[0].bias is bias


def test_any_default_device_will_do():
    """Whatever torch's default device is, random streams are the CPU's: meta stands for a GPU here."""
    model = mlp(40, 30, 5)
    optimizer = torch.optim.Adam(model.parameters())
    twin = copy.deepcopy((model, optimizer))
    with torch.device("meta"):
        model, optimizer = sparsify(model, optimizer, 0.2, evolution=SET(interval=None), seed=1)
        optimizer.evolve()
    other, other_optimizer = sparsify(*twin, 0.2, evolution=SET(interval=None), seed=1)
    other_optimizer.evolve()
    assert_same(model.state_dict(), other.state_dict())


SIZE_TEST = """
import pathlib, sys, torch
from torch import nn
from sparsify import SET, epsilon, sparsify

def build():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(500_000, 500_000), nn.ReLU(), nn.Linear(500_000, 500_000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return sparsify(model, optimizer, epsilon(1.25), evolution=SET(interval=2), seed=0)

def train(model, optimizer):
    for step in range(3):
        torch.manual_seed(step)
        loss = model(torch.randn(8, 500_000)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model, optimizer = build()
assert sum(layer.nnz for layer in (model[0], model[2])) == 2_500_000
train(model, optimizer)
assert len(optimizer.history) == 1
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, sys.argv[1])
train(model, optimizer)
last = model[2].values.detach().clone()
del model, optimizer
model, optimizer = build()
saved = torch.load(sys.argv[1], weights_only=True)
model.load_state_dict(saved["model"])
optimizer.load_state_dict(saved["optimizer"])
train(model, optimizer)
assert torch.equal(model[2].values, last), "resumed otherwise"
print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_layers_of_half_a_million_units_fit_in_two_gib(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SIZE_TEST, str(tmp_path / "checkpoint.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.0, "GiB at the peak"
