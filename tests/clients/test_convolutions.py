"""Convolutions compiled, exported, traced and counted, as linear layers are."""

import io

import onnxruntime
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparsify import SET, RigL, SparseConv1d, SparseConv2d, SparseConv3d, densify, kernels, sparsify, trim
from sparsify._src.conversion.linear_maps import KINDS
from tests.support.convolutions import images, network
from tests.support.marks import EACH, TORCHS_OWN

pytestmark = [
    TORCHS_OWN,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


@pytest.fixture
def counter():
    return CompileCounterWithBackend("aot_eager")


def pair(evolution=SET(interval=1), dtype=torch.float64):  # noqa: B008
    torch.manual_seed(0)
    model = network(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return sparsify(model, optimizer, 0.35, evolution=evolution, kinds=KINDS, seed=3)


def loss_of(model):
    return lambda inputs, labels: F.cross_entropy(model(inputs), labels)


def train(optimizer, loss, number):
    optimizer.zero_grad()
    value = loss(*images(number))
    value.backward()
    optimizer.step()
    return value


def check_training(evolution, backend, steps=5):
    model, optimizer = pair(evolution)
    eager_model, eager_optimizer = pair(evolution)
    compiled = torch.compile(loss_of(model), fullgraph=True, backend=backend)
    for number in range(steps):
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            loss = train(optimizer, compiled, number)
        torch.testing.assert_close(loss, train(eager_optimizer, loss_of(eager_model), number))
        for i in 0, 2, 5:
            assert torch.equal(model[i].flat(), eager_model[i].flat())
            torch.testing.assert_close(model[i].values, eager_model[i].values)
    assert len(optimizer.history) == steps


@pytest.mark.parametrize("evolution", [SET(interval=1), RigL(interval=1)])
def test_training_is_one_graph_and_none_is_compiled_again_after_evolutions(evolution, counter):
    check_training(evolution, counter)
    assert counter.frame_count == 1


def test_training_with_generated_code(monkeypatch):
    monkeypatch.setenv("CI", "true")  # there Inductor refuses to call an operator that has a decomposition
    twins = []
    for backend in "inductor", "eager":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, dtype=torch.float64))
        model, optimizer = sparsify(
            model, torch.optim.SGD(model.parameters(), 0.1), 0.3, evolution=RigL(interval=1), kinds=nn.Conv2d, seed=1
        )
        with (
            torch._inductor.config.patch(fx_graph_cache=False),
            torch._functorch.config.patch(enable_autograd_cache=False),
        ):
            compiled = torch.compile(model, fullgraph=True, backend=backend)
            for number in range(3):
                optimizer.zero_grad()
                with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                    compiled(images(number)[0]).tanh().square().sum().backward()
                optimizer.step()
        twins.append(model.state_dict())
    torch.testing.assert_close(*twins)


def test_images_of_any_number_and_size_share_a_graph(counter):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 2, padding="same"), nn.AdaptiveAvgPool2d(1)
    )
    model, _ = sparsify(model, None, 0.3, kinds=nn.Conv2d)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for count, *size in (4, 8, 9), (7, 12, 10), (2, 9, 21):
        x = torch.randn(count, 3, *size)
        expected = model(x)
        torch.testing.assert_close(compiled(x), expected)
        parameters = list(model.parameters())
        found = torch.autograd.grad(compiled(x).square().sum(), parameters)
        torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), parameters))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("padding", "mode"), [("same", "zeros"), (1, "reflect"), (1, "circular")])
def test_other_paddings_without_a_batch_under_autocast_are_one_graph(padding, mode):
    layer = SparseConv2d(3, 4, 4, 0.3, padding=padding, padding_mode=mode)
    compiled, x = torch.compile(layer, fullgraph=True, backend="eager"), torch.randn(3, 6, 7)
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), layer(x), rtol=0.02, atol=0.02)


def test_exported_saved_and_loaded_with_a_free_batch_size():
    model, optimizer = pair()
    for number in range(3):
        train(optimizer, loss_of(model), number)
    model.eval()
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (images(0)[0],), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in 2, 9, 40:
        inputs, _ = images(1, size)
        assert torch.equal(program.module()(inputs), model(inputs))
        assert torch.equal(loaded.module()(inputs), model(inputs))
    assert set(loaded.state_dict) == set(model.state_dict())


def test_exported_with_images_of_any_size():
    layer = SparseConv2d(3, 4, 3, 0.3, stride=2, padding=1)
    batch, height, width = (torch.export.Dim(name, min=4, max=500) for name in ("batch", "height", "width"))
    sizes = ({0: batch, 2: height, 3: width},)
    program = torch.export.export(nn.Sequential(layer), (torch.randn(4, 3, 9, 8),), dynamic_shapes=sizes)
    for shape in (4, 3, 9, 8), (5, 3, 12, 31):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), layer(x))


def by_onnx(model, x, path, dynamic=None, dynamo=True):
    with kernels.use("native" if "native" in kernels.available() else "aten"):
        if dynamo:
            torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False).save(path)
        else:
            torch.onnx.export(model, (x,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("form", [densify, lambda model: model, lambda model: trim(model, 0.5)])
def test_onnxruntime_gives_the_same_for_any_number_of_images(form, tmp_path):
    model = form(pair(dtype=torch.float32)[0].eval())
    run = by_onnx(model, images(0, dtype=torch.float32)[0], tmp_path / "model.onnx", ({0: "batch"},))
    for count in 1, 5, 20:
        x = images(1, count, torch.float32)[0]
        torch.testing.assert_close(run(x), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")  # torch's own
def test_the_older_exporter_and_every_kind(tmp_path):
    for dims, kind in (1, SparseConv1d), (2, SparseConv2d), (3, SparseConv3d):
        layer = kind(4, 6, 3, 0.3, stride=2, padding=1, groups=2).eval()
        x = torch.randn(2, 4, *[5] * dims)
        for dynamo in True, False:
            run = by_onnx(nn.Sequential(layer).eval(), x, str(tmp_path / f"{dims}{dynamo}.onnx"), dynamo=dynamo)
            torch.testing.assert_close(run(x), layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_traced_by_jit_and_by_fx():
    model = pair(dtype=torch.float32)[0].eval()
    x = images(0, dtype=torch.float32)[0]
    traced = torch.jit.trace(model, x)
    symbolic = torch.fx.symbolic_trace(model)
    for count in 6, 3:
        x = images(1, count, torch.float32)[0]
        torch.testing.assert_close(traced(x), model(x))
        assert torch.equal(symbolic(x), model(x))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(x), model(x))


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", EACH)
def test_two_operations_for_each_connection_and_place_of_the_output(name):
    layer = SparseConv2d(6, 8, 3, 0.3, stride=2, padding=1, groups=2)
    x = torch.randn(5, 6, 9, 8)
    product = 2 * layer.nnz * 5 * 5 * 4
    with kernels.use(name):
        assert flops(lambda: layer(x)) == product
        with torch.no_grad():
            assert flops(lambda: layer(x)) == product
        assert flops(lambda: layer(x).sum().backward()) == 2 * product, "no gradient for the input"
        x.requires_grad_()
        assert flops(lambda: layer(x).sum().backward()) == 3 * product
        loss = layer(x).sum()
        assert flops(loss.backward) == 2 * product, "forward outside"
        layer.requires_grad_(False)
        assert flops(lambda: layer(x).sum().backward()) == 2 * product, "only for the input"


def test_a_full_layer_counts_as_a_dense_one():
    for dims, kind in (1, SparseConv1d), (2, SparseConv2d), (3, SparseConv3d):
        layer = kind(4, 6, 3, 1.0, stride=2, padding=1)
        x = torch.randn(2, 4, *[5] * dims, requires_grad=True)

        def training(model, x=x):
            return lambda: model(x).sum().backward()

        assert flops(training(layer)) == flops(training(densify(layer)))


def test_fake_inputs_and_models_on_the_meta_device_count_the_same():
    model = pair(dtype=torch.float32)[0]
    x = images(0, dtype=torch.float32)[0]
    real = flops(lambda: model(x).sum().backward())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert flops(lambda: model(torch.randn(x.shape)).sum().backward()) == real
    meta = model.to("meta")
    assert flops(lambda: meta(x.to("meta")).sum().backward()) == real
