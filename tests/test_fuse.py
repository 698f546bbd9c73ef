"""Batch norms folded into the layers before them: the same function in evaluation."""

import copy
import pickle
import re
import warnings

import onnxruntime
import pytest
import timm
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils import prune

from sparsify import GMP, SparseConv2d, SparseLinear, densify, fuse, sparsify, summary, trim
from sparsify._src.layers.folding import Folded
from tests.support.comparing import assert_same

EVERY = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


def settled(model):
    """As if it had been trained: no number of a norm is the one it begins with."""
    for module in model.modules():
        if isinstance(module, NORMS):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -1.5, 1.5)
    return model


def sparse(model, density=0.3, **options):
    return sparsify(settled(model), None, density, kinds=EVERY, seed=0, **options)[0]


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def check(model, x, left=(), **options):
    """Fuse and compare; which norms are left."""
    was_training, before = model.training, copy.deepcopy(model.state_dict())
    fused = fuse(model, **options)
    assert model.training is was_training
    assert_same(model.state_dict(), before)
    assert norms(fused) == list(left)
    assert not any(module.training for module in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(x), copy.deepcopy(model).eval()(x), atol=1e-4, rtol=1e-4)
    return fused


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [sparse, settled])
def test_a_norm_is_folded_into_each_kind_of_layer(make, dims, bias, affine):
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims](8, affine=affine)
    layer = EVERY[dims](6, 8, *[3] * bool(dims), bias=bias)
    model = make(nn.Sequential(layer, norm, nn.ReLU()))
    fused = check(model, torch.randn(4, 6, *[5] * dims))
    assert isinstance(fused[1], nn.Identity)
    assert type(fused[0]) is type(model[0])
    if make is sparse:
        assert torch.equal(fused[0].flat(), model[0].flat())
        assert list(fused.state_dict()) == ["0.values", "0.bias", "0.crow", "0.col"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_stay(dtype):
    model = sparse(nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8))).to(dtype)
    fused, x = fuse(model), torch.randn(4, 6, 5, 5, dtype=dtype)
    assert {tensor.dtype for tensor in fused.parameters()} == {dtype}
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-10
    torch.testing.assert_close(fused(x), model.eval()(x), atol=tolerance, rtol=tolerance)


def test_options_groups_and_attributes_of_a_convolution_survive():
    conv = nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=3, padding_mode="reflect", bias=False)
    conv.note = "mine"
    fused = check(sparse(nn.Sequential(conv, nn.SyncBatchNorm(12))), torch.randn(2, 6, 7, 7))
    assert (fused[0].groups, fused[0].padding_mode, fused[0].note) == (3, "reflect", "mine")


class Residual(nn.Module):
    """One norm after a sum, one shared by two convolutions, one that a pair is made of; and one whose input is needed
    again."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.after_sum = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.conv4, self.shared = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.conv5, self.needed = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.twice, self.of_twice, self.also = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.read, self.of_read = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x, scale=None):
        x = self.bn1(self.conv1(x)).relu()
        x = self.after_sum(self.conv2(x) + x)
        x = self.shared(self.conv3(x)) + self.shared(self.conv4(x))
        between = self.conv5(x)
        x = self.needed(between) + between.sigmoid()
        x = self.of_twice(self.twice(x)) + self.also(self.twice(x))
        return self.of_read(self.read(x)) + self.read.bias.sum()


NOT_FOLDED = ["after_sum", "shared", "needed", "of_twice", "also", "of_read"]


def test_only_where_nothing_else_sees_what_is_between_and_each_is_called_once():
    for make in sparse, settled:
        fused = check(make(Residual()), torch.randn(2, 4, 6, 6), left=NOT_FOLDED)
        assert type(fused.bn1) is nn.Identity


def test_a_module_at_two_places_is_folded_where_it_is_called_once():
    layer, norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
    check(sparse(nn.Sequential(layer, norm, layer, norm)), torch.randn(5, 8), left=["1"])

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.again = nn.ModuleList([self.layer, self.norm])

        def forward(self, x):
            return self.norm(self.layer(x))

    fused = check(sparse(Holder()), torch.randn(5, 6))
    assert fused.again[0] is fused.layer
    assert fused.again[1] is fused.norm


class Branching(nn.Module):
    """Where the optional argument is given, the output of the layer is used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x, beside=None, keep=False):
        x = self.layer(x)
        return self.norm(x) if beside is None else self.norm(x) + x * beside


def test_what_depends_on_an_optional_argument_is_looked_at_both_ways():
    check(sparse(Branching()), torch.randn(5, 6), left=["norm"])


@pytest.mark.parametrize("where", ["layer", "norm", "inner"])
def test_what_hooks_see_stays_and_tracing_calls_none(where):
    seen = []
    inner = nn.Sequential(nn.Linear(6, 8))
    model = sparse(nn.Sequential(inner, nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)))
    hooked = {"layer": model[0][0], "norm": model[1], "inner": model[0]}[where]
    hooked.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert norms(fuse(model)) == ["1"]
    assert not seen


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.utils.parametrizations.weight_norm(model[0]),
        lambda model: model.__setattr__("1", nn.BatchNorm1d(8, track_running_stats=False)),
        lambda model: model.__setattr__("1", nn.BatchNorm1d(5)),
        lambda model: setattr(model[0], "forward", lambda x: x.new_zeros(len(x), 8)),
    ],
)
def test_what_cannot_be_folded_stays(change):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    change(model)
    fused = fuse(model)
    assert norms(fused) == ["1"]
    with pytest.raises(ValueError, match=r"pairs must name batch norms that can be folded, got \('0', '1'\): "):
        fuse(model, [("0", "1")])


def test_a_pruned_layer_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match="the weight or bias of its layer is computed from others"):
        fuse(model, [("0", "1")])


def test_a_norm_along_another_dimension_is_not_computed_wrongly():
    model = sparse(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    fused = check(model, torch.randn(5, 6))
    model.eval()(torch.randn(5, 8, 6))  # along the second of three
    with pytest.raises(ValueError, match=r"input must have 2 dimensions where a batch norm .* got \(5, 8, 8\)"):
        fused(torch.randn(5, 8, 6))


class Deciding(nn.Module):
    """Cannot be traced: what it does depends on its input."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() > -1e9 else x


def test_a_model_that_cannot_be_traced_is_refused_and_the_message_says_what_to_paste():
    model = sparse(Deciding(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))))
    with pytest.raises(ValueError, match=r"model must be one that torch\.fx can trace, got TraceError: ") as refused:
        fuse(model)
    said = re.search(r"pairs=(\[.*\]), where nothing else uses", str(refused.value))[1]
    assert said == "[('inner.0', 'inner.1')]"
    check(model, torch.randn(2, 3, 6, 6), left=["inner.3"], pairs=[("inner.0", "inner.1")])
    separate = nn.Module()
    separate.conv, separate.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match=re.escape("pairs=[('conv1', 'bn1'), ...].")):
        fuse(Deciding(separate))


def test_a_part_that_cannot_be_traced_is_kept_whole_where_no_norm_is_in_it():
    model = sparse(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Deciding(nn.Linear(8, 8)), nn.BatchNorm1d(8)))
    check(model, torch.randn(5, 6), left=["3"])


def test_a_model_whose_forward_was_replaced_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match="got TypeError: a forward that has been replaced"):
        fuse(model)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("0", "7")], "pairs must name modules of the model, got '7'"),
        ([("0", "1"), ("2", "1")], "pairs must name each module once, got '1' again"),
        ([("0", "3")], r"got \('0', '3'\): ReLU is no batch norm that can be folded"),
        ([("3", "1")], r"got \('3', '1'\): ReLU is no linear layer or convolution"),
        ([("2", "1")], r"got \('2', '1'\): the output of a SparseConv2d is not what a BatchNorm1d takes"),
    ],
)
def test_pairs_are_checked(pairs, message):
    model = sparse(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Conv2d(3, 8, 3), nn.ReLU()))
    with pytest.raises(ValueError, match=message):
        fuse(model, pairs)


def test_a_model_without_norms_is_copied_even_where_it_cannot_be_traced():
    model = sparse(Deciding(nn.Linear(6, 8)))
    fused = check(model, torch.randn(5, 6))
    assert fused.inner is not model.inner


def test_the_original_trains_and_evolves_on_and_the_fused_copy_stays():
    model = settled(nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)))
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 0.3, seed=1)
    fused, x = fuse(model), torch.randn(8, 12)
    before, expected = copy.deepcopy(fused.state_dict()), fused(x)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
        optimizer.evolve()
    assert_same(fused.state_dict(), before)
    assert torch.equal(fused(x), expected)
    assert not torch.equal(model[0].flat(), fused[0].flat())


def test_a_model_that_is_still_being_pruned_is_warned_of():
    model = settled(nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16)))
    model, _ = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.1, evolution=GMP(until=10, interval=1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fuse(model)
    assert "The model that is fused is still being pruned" in str(said[0].message)


def test_the_state_dict_of_a_fused_model_loads_into_another():
    def made(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        return fuse(sparsify(settled(model), None, 0.3, kinds=EVERY, seed=seed)[0])

    fused, other, x = made(0), made(1), torch.randn(2, 3, 6, 6)
    assert not torch.allclose(fused(x), other(x))
    other.load_state_dict(fused.state_dict())
    assert torch.equal(fused(x), other(x))


@pytest.fixture(scope="module")
def resnet():
    return sparse(timm.create_model("resnet18", num_classes=5), 0.1)


IMAGES = torch.randn(2, 3, 32, 32)


def test_a_resnet_loses_all_of_its_norms(resnet):
    fused = check(resnet, IMAGES)
    convolutions = [module for module in fused.modules() if isinstance(module, (SparseConv2d, nn.Conv2d))]
    assert len(convolutions) == 20
    assert sum(isinstance(conv, SparseConv2d) for conv in convolutions) > 15
    assert all(conv.bias is not None for conv in convolutions)
    assert all(type(module) is nn.Identity for name, module in fused.named_modules() if name.endswith("bn1"))


def test_a_fused_resnet_becomes_dense_is_exported_traced_pickled_and_trimmed(resnet, tmp_path):
    fused = fuse(resnet)
    expected = fused(IMAGES).detach()
    plain = densify(fused)
    assert not any(isinstance(module, (SparseConv2d, SparseLinear)) for module in plain.modules())
    also = fuse(densify(resnet))
    for model in plain, also, symbolic_trace(fused), pickle.loads(pickle.dumps(fused)), trim(fused, 0.0):
        torch.testing.assert_close(model(IMAGES), expected, atol=1e-4, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about the exporter itself
        torch.onnx.export(fused, (IMAGES,), tmp_path / "model.onnx", dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "efficientnet_b0"])
def test_timms_norms_with_an_activation_leave_the_activation(name):
    model = sparse(timm.create_model(name, num_classes=5))
    fused = check(model, IMAGES)
    assert [type(part) for part in fused.bn1] == [nn.Identity, type(model.bn1.act)]
    assert fused.bn1.act is not model.bn1.act


def test_a_norm_that_stands_before_its_layer_stays():
    model = sparse(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8)))
    check(model, torch.randn(5, 6), left=["0", "3"])


def test_what_was_folded_shows_and_is_counted():
    fused = fuse(sparse(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))))
    assert repr(fused[1]) == "Folded(dims=2)"
    assert isinstance(fused[1], Folded)
    assert [row.name for row in summary(fused).layers] == ["0"]
