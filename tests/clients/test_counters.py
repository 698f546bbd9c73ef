"""Counters of parameters and FLOPs see the connections, not the places between them."""

import subprocess
import sys
import warnings

import ptflops
import pytest
import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsify import RigL, SparseLinear, densify, kernels, sparsify
from tests.support.marks import EACH
from tests.support.models import mlp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # thop imports distutils, fvcore scripts with torch.jit
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # as torch 2.15 calls it
    import thop
    from fvcore.nn import FlopCountAnalysis, parameter_count


@pytest.fixture
def model():
    return sparsify(mlp(20, 30, 5), None, 0.3)[0]


@pytest.fixture
def full():
    """A sparse model in which every place is a connection, so that its dense twin counts the same."""
    return nn.Sequential(SparseLinear(20, 30, 1.0), nn.ReLU(), SparseLinear(30, 5, 1.0, bias=False))


def connections(model):
    return sum(layer.nnz for layer in model.modules() if isinstance(layer, SparseLinear))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# torch.utils.flop_counter


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("order", [("sparsify", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "sparsify")])
def test_the_counter_knows_sparse_products_whichever_is_imported_first(order):
    command = f"""
import importlib, sys, torch
first, second = {order}
importlib.import_module(first)
assert first != "sparsify" or "torch.utils.flop_counter" not in sys.modules, "it is slow to import"
importlib.import_module(second)
layer = sys.modules["sparsify"].SparseLinear(20, 30, 0.5)
with sys.modules["torch.utils.flop_counter"].FlopCounterMode(display=False) as counter:
    layer(torch.randn(7, 20))
assert counter.get_total_flops() == 2 * 300 * 7
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EACH)
def test_two_operations_for_each_connection_and_sample(name, model):
    product = 2 * connections(model) * 7
    first = 2 * model[0].nnz * 7
    x = torch.randn(7, 20)
    with kernels.use(name):
        assert flops(lambda: model(x)) == product
        with torch.no_grad():
            assert flops(lambda: model(x)) == product
        assert flops(lambda: model(x).sum().backward()) == 3 * product - first, "no gradient for the input"
        x.requires_grad_()
        assert flops(lambda: model(x).sum().backward()) == 3 * product
        loss = model(x).sum()
        assert flops(loss.backward) == 2 * product, "forward outside"
        model.requires_grad_(False)
        assert flops(lambda: model(x).sum().backward()) == 2 * product, "only for the input"


def test_samples_of_any_rank_and_layers_of_their_names(model):
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 20))
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    assert counts["Sequential.0"] == 2 * model[0].nnz * 6
    assert counts["Sequential.2"] == 2 * model[2].nnz * 6


def test_a_full_layer_counts_as_a_dense_one(full):
    def training(model):
        x = torch.randn(7, 20, requires_grad=True)
        return lambda: model(x).sum().backward()

    assert flops(training(full)) == flops(training(densify(full)))


def test_fake_inputs_and_models_on_the_meta_device_count_the_same(model):
    real = flops(lambda: model(torch.randn(7, 20)).sum().backward())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert flops(lambda: model(torch.randn(7, 20)).sum().backward()) == real
    meta = model.to("meta")
    assert flops(lambda: meta(torch.randn(7, 20, device="meta")).sum().backward()) == real


def test_a_step_that_is_counted_trains_as_any_other():
    trained = []
    for counted in True, False:
        torch.manual_seed(1)
        model = mlp(20, 30, 5)
        model, optimizer = sparsify(
            model, torch.optim.Adam(model.parameters()), 0.3, evolution=RigL(interval=1), seed=1
        )
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 20)).square().sum()
            flops(loss.backward) if counted else loss.backward()
            optimizer.step()
        trained.append(model.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name])


# fvcore: it counts a multiplication with its addition as one


def of_trace(inputs, outputs):
    return inputs[0].type().sizes()[0] * inputs[1].type().sizes()[0]  # samples * connections


def test_fvcore(model, full):
    x = torch.randn(7, 20)
    counter = FlopCountAnalysis(model, x).set_op_handle("sparsify::linear", of_trace)
    assert counter.total() == 7 * connections(model)
    assert counter.total("0") == 7 * model[0].nnz
    assert not [name for name in counter.unsupported_ops() if "sparsify" in name]
    assert parameter_count(model)[""] == parameters(model)
    full.eval()
    found = FlopCountAnalysis(full, x).set_op_handle("sparsify::linear", of_trace).total()
    assert found == FlopCountAnalysis(densify(full), x).total()


def test_without_a_handle_fvcore_names_the_operator(model, caplog):
    counter = FlopCountAnalysis(model, torch.randn(7, 20))
    assert counter.total() == 0
    assert counter.unsupported_ops()["sparsify::linear"] == 2
    assert "Unsupported operator sparsify::linear encountered 2 time(s)" in caplog.text


# torchinfo: it knows parameters by the names weight and bias


def mult_adds(found):
    layers = [info for info in found.summary_list if isinstance(info.module, SparseLinear)]
    return found.total_mult_adds + sum(info.output_size[0] * info.module.nnz for info in layers)


def test_torchinfo(model, full):
    found = torchinfo.summary(model, (7, 20), verbose=0)
    assert (found.total_params, found.trainable_params) == (parameters(model),) * 2
    assert found.total_param_bytes == 4 * parameters(model)
    assert mult_adds(found) == 7 * parameters(model)
    assert "SparseLinear" in str(found)
    assert mult_adds(torchinfo.summary(full, (7, 20), verbose=0)) == (
        torchinfo.summary(densify(full), (7, 20), verbose=0).total_mult_adds
    )


# thop


def multiply(layer, inputs, output):
    layer.total_ops += layer.nnz * output[..., 0].numel()


def test_thop(model, full):
    x = torch.randn(7, 20)
    assert thop.profile(model, (x,), {SparseLinear: multiply}, verbose=False) == (
        7 * connections(model),
        parameters(model),
    )
    assert thop.profile(full, (x,), {SparseLinear: multiply}, verbose=False) == thop.profile(
        densify(full), (x,), verbose=False
    )


# ptflops


def count(layer, inputs, output):
    layer.__flops__ += output[..., 0].numel() * sum(parameter.numel() for parameter in layer.parameters())


def count_operands(inputs, outputs):
    return len(inputs[0]) * sum(len(operand) for operand in inputs[1:3] if operand is not None)


def complexity(model, backend, hooks):
    options = {"print_per_layer_stat": False, "as_strings": False, "backend": backend}
    return ptflops.get_model_complexity_info(model, (7, 20), custom_modules_hooks=hooks, **options)


@pytest.mark.parametrize(
    ("backend", "hooks"),
    [("pytorch", {SparseLinear: count}), ("aten", {torch.ops.sparsify.linear: count_operands})],
)
def test_ptflops(backend, hooks, full):
    layer = nn.Sequential(SparseLinear(20, 30, 0.3))
    assert complexity(layer, backend, hooks) == (7 * parameters(layer), parameters(layer))
    assert complexity(full, backend, hooks) == complexity(densify(full), backend, hooks)
