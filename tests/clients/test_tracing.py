"""What traces, fakes or watches a model sees sparse layers as it sees dense ones; only plain memory meets a kernel."""

import copy
import io
import operator
import subprocess
import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx import symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify import GMP, SET, SparseLinear, densify, kernels, sparsify
from tests.support.marks import EACH, TORCHS_OWN
from tests.support.models import mlp

pytestmark = TORCHS_OWN


@pytest.fixture
def model():
    return sparsify(mlp(20, 30, 5), None, 0.3)[0]


@pytest.fixture
def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return sparsify(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), None, 0.3)[0]


def batch(*shape):
    return torch.randn(*shape, requires_grad=True)


def check_twin(run, twin, x, *arguments):
    """Output and gradient of `run` are those of the dense `twin`."""
    expected, out = twin(x, *arguments), run(x, *arguments)
    assert_close(out, expected)
    assert_close(*(torch.autograd.grad(result.square().sum(), x)[0] for result in (out, expected)))


def train(model, optimizer, *shape):
    optimizer.zero_grad()
    model(torch.randn(*shape)).square().sum().backward()
    optimizer.step()


# torch.jit


def reloaded(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", EACH)
def test_torch_jit_traces(name, mode, grad, model):
    getattr(model, mode)()
    twin = densify(model)
    with kernels.use(name):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(model, torch.randn(4, 20))
        for run in traced, reloaded(traced):
            for shape in (4, 20), (1, 20), (9, 20):
                check_twin(run, twin, batch(*shape))


def test_torch_jit_traces_inputs_of_any_rank_and_in_half_precision(model):
    traced = torch.jit.trace(model, torch.randn(2, 3, 20))
    check_twin(traced, densify(model), batch(5, 4, 20))
    model = model.bfloat16()
    x = torch.randn(6, 20).bfloat16()
    assert torch.equal(torch.jit.trace(model, x[:2])(x), model(x))


def test_what_torch_jit_traced_refuses_an_input_of_another_width(model):
    traced = torch.jit.trace(model, torch.randn(4, 20))
    with pytest.raises(RuntimeError, match=r"input must be \(batch, 20\), got \(4, 21\)"):
        traced(torch.randn(4, 21))


def test_what_torch_jit_traced_follows_evolutions():
    model = mlp(20, 30, 5)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.3, evolution=SET(interval=1))
    traced = torch.jit.trace(model, torch.randn(4, 20))
    train(model, optimizer, 8, 20)
    check_twin(traced, densify(model), batch(7, 20))


@pytest.mark.parametrize("grad", [True, False])
def test_torch_jit_traces_sparse_attention(grad, encoder):
    twin = densify(encoder)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(encoder, torch.randn(3, 5, 16))
    for shape in (3, 5, 16), (2, 7, 16):
        check_twin(traced, twin, batch(*shape))


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)

    def forward(self, x, mask=None, padding=None):
        return self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding)


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_torch_jit_traces_attention_with_masks(options):
    model = sparsify(Attending(**options), None, 0.4)[0]

    def inputs(number, length):
        padding = torch.rand(number, length) < 0.3
        padding[:, 0] = False
        return batch(number, length, 16), torch.ones(length, length, dtype=torch.bool).triu(1), padding

    traced = torch.jit.trace(model, inputs(3, 5))
    given = inputs(2, 7)
    assert_close(traced(*given), densify(model).train()(*given))


# The exporter of ONNX that traces with torch.jit


def exported(model, x, path):
    dynamic = {"x": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about itself
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=dynamic)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_older_onnx_exporter(dtype, tmp_path):
    model = nn.Sequential(nn.Linear(12, 16, bias=False, dtype=dtype), nn.ReLU(), nn.Linear(16, 4, dtype=dtype))
    model = sparsify(model, None, 0.3)[0].eval()
    run = exported(model, torch.randn(5, 12, dtype=dtype), tmp_path / "model.onnx")
    for size in 1, 5, 40:
        x = torch.randn(size, 12, dtype=dtype)
        assert_close(run(x), densify(model)(x).detach())
    domains = {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert domains == {""}, "ONNX's own operators"


def test_the_older_onnx_exporter_takes_attention(encoder, tmp_path):
    run = exported(encoder.eval(), torch.randn(3, 5, 16), tmp_path / "model.onnx")
    x = torch.randn(4, 5, 16)
    assert_close(run(x), densify(encoder)(x).detach())


# Fake and meta tensors


@pytest.mark.parametrize("name", EACH)
def test_fake_inputs(name, model):
    with kernels.use(name), FakeTensorMode(allow_non_fake_inputs=True):
        out = model(batch(4, 20))
        assert out.shape == (4, 5)
        out.sum().backward()
    assert model[0].values.grad.shape == model[0].values.shape
    model.zero_grad()
    check_twin(model, densify(model), batch(4, 20))


def test_a_fake_copy_of_the_model(model, encoder):
    for real, shape in (model, (4, 20)), (encoder, (2, 3, 16)):
        mode = FakeTensorMode()
        with FakeCopyMode(mode):
            copied = copy.deepcopy(real)
        with mode:
            out = copied(torch.randn(shape))
        assert out.shape == densify(real)(torch.randn(shape)).shape


def test_fake_tensors_in_the_place_of_the_models():
    model = mlp(20, 30, 5)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.3, evolution=SET(interval=1))
    train(model, optimizer, 8, 20)  # which has written to the indices
    with FakeTensorMode() as mode:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fakes = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        assert functional_call(model, fakes, (torch.randn(4, 20),)).shape == (4, 5)


def test_a_model_on_the_meta_device(model):
    x = batch(4, 20)
    expected = model(x).detach()
    meta = copy.deepcopy(model).to("meta")
    out = meta(torch.empty(7, 20, device="meta"))
    out.sum().backward()
    assert out.is_meta
    assert out.shape == (7, 5)
    assert meta[0].values.grad.shape == model[0].values.shape
    with pytest.raises(ValueError, match="input must be on the layer's device meta, got cpu"):
        meta(x)
    tensors = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    assert functional_call(model, tensors, (torch.empty(7, 20, device="meta"),)).shape == (7, 5)
    assert torch.equal(model(x), expected)


# torch.fx


@pytest.mark.parametrize("evolution", [SET(interval=1), GMP(until=5, interval=1)])
def test_symbolic_tracing_keeps_layers_whole_and_follows_their_evolutions(evolution):
    model = mlp(20, 30, 5)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.3, evolution=evolution)
    traced = symbolic_trace(model)
    traced.graph.lint()
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
    for _ in range(3):
        check_twin(traced, densify(model), batch(6, 20))
        train(model, optimizer, 8, 20)
    copied = copy.deepcopy(traced)
    check_twin(copied, densify(model), batch(6, 20))
    x = torch.randn(6, 20)
    assert torch.equal(torch.fx.Interpreter(traced).run(x), model(x))
    assert torch.equal(torch.fx.Transformer(traced).transform()(x), model(x))


def test_symbolic_tracing_runs_hooks_once(model):
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    x = torch.randn(6, 20)
    assert torch.equal(symbolic_trace(model)(x), model(x))


def test_symbolic_tracing_of_attention():
    model = sparsify(Attending(), None, 0.4)[0]
    traced = symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["attention"]
    given = batch(2, 5, 16), torch.randn(5, 5)
    assert_close(traced(*given), densify(model)(*given))


def test_tracers_with_rules_of_their_own(model):
    class Whole(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, SparseLinear) or super().is_leaf_module(module, name)

    traced = torch.fx.GraphModule(model, Whole().trace(model))
    check_twin(traced, densify(model), batch(6, 20))


def test_torchvisions_feature_extractor(model):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    x = torch.randn(6, 20)
    found = extraction.create_feature_extractor(model, {"0": "hidden", "2": "out"})(x)
    assert torch.equal(found["hidden"], model[0](x))
    assert torch.equal(found["out"], model(x))


def test_a_layer_alone_is_refused_by_symbolic_tracing(model):
    with pytest.raises(ValueError, match=r"root must contain the layer .*Trace nn.Sequential\(layer\)"):
        symbolic_trace(model[0])


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", EACH)
def test_make_fx_records_the_operator(name, mode, model):
    def gradient(x):
        return torch.autograd.grad(model(x).square().sum(), x)[0]

    with kernels.use(name):
        graph = make_fx(gradient, tracing_mode=mode, _allow_non_fake_inputs=True)(batch(4, 20))
        x = batch(4, 20)
        assert_close(graph(x), gradient(x))
    targets = [node.target for node in graph.graph.nodes]
    for name in "linear", "linear_backward":
        assert operator.countOf(targets, getattr(torch.ops.sparsify, name).default) == 2


# Tensors that are more than their memory


@pytest.mark.parametrize("name", EACH)
def test_lazily_negative_tensors(name, model):
    def odd(tensor):
        return torch._neg_view(-tensor)  # what .imag of a conjugated tensor is, but contiguous

    layer, x, grad = model[0], torch.randn(4, 20), torch.randn(4, 30)
    twin = densify(layer)
    with kernels.use(name):
        assert_close(layer(odd(x)), twin(x))
        assert_close(functional_call(layer, {"values": odd(layer.values.detach())}, x), twin(x))
        for given in odd(grad), grad[:1].expand(4, 30):
            leaf = x.clone().requires_grad_()
            found = torch.autograd.grad(layer(leaf), (leaf, layer.values, layer.bias), given)
            expected = torch.autograd.grad(twin(leaf), (leaf, twin.weight, twin.bias), given.clone())
            assert_close(found[0], expected[0])
            assert_close(found[1], expected[1].flatten()[layer.flat()])
            assert_close(found[2], expected[2])


class Named(torch.Tensor):
    """As fastai's and MONAI's tensors: a subclass for its own sake, with __torch_function__ at most."""


@pytest.mark.parametrize("name", EACH)
def test_subclasses_come_out_as_from_a_dense_layer(name, model):
    x = torch.randn(4, 20).as_subclass(Named)
    with kernels.use(name):
        out, expected = model(x), densify(model)(x)
        assert type(out) is type(expected) is Named
        assert_close(out, expected)
        out.sum().backward()
        with torch.no_grad():
            assert type(model(x)) is Named
    assert model[0].values.grad.abs().sum() > 0


@pytest.mark.parametrize("name", EACH)
def test_wrapper_subclasses(name, model):
    one, other = torch.randn(4, 20), torch.randn(4, 20)
    with kernels.use(name):
        out = model(TwoTensor(one, other))
        assert_close((out.a, out.b), (model(one), model(other)))
        x = TwoTensor(one, other).requires_grad_()
        (found,) = torch.autograd.grad(model(x).sum(), x)
        expected = (torch.autograd.grad(model(t).sum(), t)[0] for t in (one.requires_grad_(), other.requires_grad_()))
        assert_close((found.a, found.b), tuple(expected))
        out = model[0](one.detach())
        (found,) = torch.autograd.grad(out, model[0].values, TwoTensor(torch.ones(4, 30), torch.zeros(4, 30)))
        assert type(found) is TwoTensor
        assert found.b.abs().sum() == 0


def test_a_dispatch_mode_sees_both_passes(model):
    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    with Log():
        out = model(torch.randn(4, 20))
    assert seen.count("sparsify.linear.default") == 2
    out.sum().backward()
    out = model(torch.randn(4, 20))
    assert "sparsify.linear_backward.default" not in seen
    with Log():
        out.sum().backward()
    assert seen.count("sparsify.linear_backward.default") == 2


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x: x.to_sparse(), "input must be a dense tensor, got torch.sparse_coo"),
        (lambda x: x.to_sparse_csr(), "input must be a dense tensor, got torch.sparse_csr"),
        (lambda x: x.to_mkldnn(), "input must be a dense tensor, got torch._mkldnn"),
        (lambda x: torch.nested.nested_tensor([x, x]), "input must be a dense tensor, got a nested one"),
        (
            lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
            "input must be a dense tensor, got a nested",
        ),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "input must have the layer's dtype"),
        (lambda x: x.to(torch.complex64), "input must have the layer's dtype"),
        (lambda x: x.long(), "input must have the layer's dtype"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_no_kernel_can_take_is_refused(form, message, model):
    with pytest.raises(TypeError, match=message):
        model(form(torch.randn(4, 20)))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_layers_are_refused():
    layer = SparseLinear(20, 30, 0.3).to(torch.complex64)
    with pytest.raises(TypeError, match=r"dtype must be one of .*, got torch.complex64"):
        layer(torch.randn(4, 20, dtype=torch.complex64))


# torch.func and forward mode


def test_a_function_of_the_parameters(model):
    twin, x = densify(model), torch.randn(4, 20)
    for grad in True, False:
        with torch.set_grad_enabled(grad):
            weights = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
            doubled = {name: parameter.detach() * 2 for name, parameter in twin.named_parameters()}
            assert_close(functional_call(model, weights, x), functional_call(twin, doubled, x))


@pytest.mark.parametrize("name", EACH)
def test_gradients_of_functions(name, model):
    twin, x = densify(model), torch.randn(4, 20)

    def loss(model):
        return lambda parameters, x: functional_call(model, parameters, x).square().sum()

    with kernels.use(name):
        found = torch.func.grad(loss(model))(dict(model.named_parameters()), x)
        expected = torch.func.grad(loss(twin))(dict(twin.named_parameters()), x)
        for number, layer in (0, model[0]), (2, model[2]):
            assert_close(found[f"{number}.values"], expected[f"{number}.weight"].flatten()[layer.flat()])
            assert_close(found[f"{number}.bias"], expected[f"{number}.bias"])
        assert_close(torch.func.vjp(model, x)[1](torch.ones(4, 5)), torch.func.vjp(twin, x)[1](torch.ones(4, 5)))


def test_functionalization(model):
    x = torch.randn(4, 20)
    expected = model(x)
    assert torch.equal(torch.func.functionalize(model)(x), expected)
    assert torch.equal(make_fx(torch.func.functionalize(model))(x)(x), expected)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_forward_mode(name, grad, model):
    twin, x, tangent = densify(model), torch.randn(4, 20), torch.randn(4, 20)
    with kernels.use(name), torch.set_grad_enabled(grad):
        assert_close(torch.func.jvp(model, (x,), (tangent,)), torch.func.jvp(twin, (x,), (tangent,)))
        with forward_ad.dual_level():
            found, expected = (forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent))) for net in (model, twin))
            assert_close(found.tangent, expected.tangent)


@pytest.mark.parametrize("name", EACH)
def test_forward_mode_over_parameters(name):
    layer, x = SparseLinear(20, 30, 0.3), torch.randn(4, 20)
    weights, values, bias = layer.to_dense().detach(), torch.randn(layer.nnz), torch.randn(30)
    direction = torch.zeros(600).index_put((layer.flat(),), values).view(30, 20)
    primals = {"values": layer.values.detach(), "bias": layer.bias.detach()}
    with kernels.use(name):
        found = torch.func.jvp(lambda p: functional_call(layer, p, x), (primals,), ({"values": values, "bias": bias},))
    primals = weights, primals["bias"]
    assert_close(found, torch.func.jvp(lambda w, b: nn.functional.linear(x, w, b), primals, (direction, bias)))


@pytest.mark.parametrize(
    "derive",
    [
        lambda f, x: torch.func.hessian(f)(x),
        lambda f, x: torch.vmap(f)(x),
        lambda f, x: torch.vmap(torch.func.grad(f))(x),
    ],
)
def test_vmap_is_refused(derive, model):
    with pytest.raises(NotImplementedError, match=r"one of torch\.vmap"):
        derive(lambda x: model(x).square().sum(), torch.randn(4, 20))


# The operator itself


def operands(layer, batch=4):
    indices = {name: index.clone() for name, index in layer.indices()._asdict().items()}
    given = {"input": torch.randn(batch, 20), "values": layer.values.detach(), "bias": layer.bias.detach()}
    return {**given, **indices}


HOSTILE = [
    ("input", lambda x: x[:, 1:], r"input must be \(batch, 20\)"),
    ("input", lambda x: x[0], r"input must be \(batch, 20\)"),
    ("input", lambda x: x.double(), "input must be like values"),
    ("input", lambda x: x.to_sparse(), "input must be a dense"),
    ("values", lambda x: x[1:], "col must be of shape"),
    ("bias", lambda x: x[1:], "bias must be of shape"),
    ("bias", lambda x: x.double(), "bias must be like values"),
    ("ccol", lambda x: x.long(), "ccol must have the dtype of crow"),
    ("ccol", lambda x: x.float(), "ccol must be a vector of int32 or int64"),
    ("csc_order", lambda x: x[1:], "csc_order must be of shape"),
]


@pytest.mark.parametrize(("name", "change", "message"), HOSTILE)
def test_the_operator_checks_what_it_is_given(name, change, message, model):
    given = operands(model[0])
    torch.ops.sparsify.linear(*given.values())
    with pytest.raises((TypeError, ValueError), match=message):
        torch.ops.sparsify.linear(*{**given, name: change(given[name])}.values())
    if name != "bias":
        del given["bias"]
        grad = torch.randn(4, 30)
        torch.ops.sparsify.linear_backward(grad, *given.values(), [True] * 3)
        with pytest.raises((TypeError, ValueError), match=message):
            torch.ops.sparsify.linear_backward(grad, *{**given, name: change(given[name])}.values(), [True] * 3)


OUTSIDE = [
    ("crow", lambda x: x * 2),
    ("crow", lambda x: x.flip(0)),
    ("col", lambda x: x + 20),
    ("col", lambda x: x - 20),
    ("ccol", lambda x: x - 1),
    ("csc_row", lambda x: x + 10**6),
    ("csc_order", lambda x: x - 1),
]


@pytest.mark.parametrize(("name", "change"), OUTSIDE)
@pytest.mark.parametrize("kernel", EACH)
def test_indices_that_lead_outside_lead_nowhere(kernel, name, change, model):
    given = operands(model[0])
    given[name] = change(given[name])
    with kernels.use(kernel):
        if name in ("crow", "col"):
            with pytest.raises(ValueError, match="indices must be a topology of the layer"):
                torch.ops.sparsify.linear(*given.values())
        else:
            del given["bias"]
            with pytest.raises(ValueError, match="indices must be a topology of the layer"):
                torch.ops.sparsify.linear_backward(torch.randn(4, 30), *given.values(), [True] * 3)


def test_the_operator_checks_its_gradient(model):
    given = operands(model[0])
    del given["bias"]
    for grad in torch.randn(3, 30), torch.randn(4, 29), torch.randn(4, 30).double():
        with pytest.raises((TypeError, ValueError), match="grad must be"):
            torch.ops.sparsify.linear_backward(grad, *given.values(), [True] * 3)


def test_a_traced_file_loads_where_sparsify_is_imported(model, tmp_path):
    torch.jit.trace(model, torch.randn(4, 20)).save(tmp_path / "model.pt")
    x = torch.randn(4, 20)
    torch.save(x, tmp_path / "x.pt")
    program = "import sys, torch, sparsify; m, x = sys.argv[1:]; print(torch.jit.load(m)(torch.load(x)).sum().item())"
    command = [sys.executable, "-W", "ignore", "-c", program, tmp_path / "model.pt", tmp_path / "x.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(model(x).sum().item(), rel=1e-5)
