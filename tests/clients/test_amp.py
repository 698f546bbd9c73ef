"""Mixed and half precision: what nn.Linear gives, in dtype, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SET, RigL, SparseLinear, kernels, sparsify
from tests.support.comparing import assert_same
from tests.support.models import mlp

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def dtypes(layer, x, autocast):
    """Of the result and of every gradient; None where the layer refuses."""
    x = x.clone().requires_grad_(x.is_floating_point())
    try:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            out = layer(x)
    except (RuntimeError, TypeError):
        return None
    out.float().sum().backward()
    return out.dtype, [tensor.grad.dtype for tensor in (*layer.parameters(), x)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", [None, *HALVES])
@pytest.mark.parametrize("of_input", [*FLOATS, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("of_layer", FLOATS)
def test_dtypes_are_those_of_linear_and_so_is_what_is_refused(of_layer, of_input, autocast, device):
    x = torch.ones(3, 20, device=device).to(of_input)
    sparse, dense = (layer.to(device, of_layer) for layer in (SparseLinear(20, 12, 0.3), nn.Linear(20, 12)))
    assert dtypes(sparse, x, autocast) == dtypes(dense, x, autocast)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", HALVES)
def test_autocast_off_within_autocast(autocast, device):
    layer, x = SparseLinear(20, 12, 0.3).to(device), torch.randn(3, 20, device=device)
    expected = layer(x)
    with torch.autocast(device, autocast):
        half = layer(x)
        with torch.autocast(device, enabled=False):
            assert torch.equal(layer(x), expected)
            with pytest.raises(TypeError, match=f"layer's dtype torch.float32, got {autocast}"):
                layer(x.to(autocast))
    assert half.dtype == autocast


@pytest.mark.parametrize("autocast", HALVES)
@pytest.mark.parametrize("name", kernels.available())
def test_autocast_rounds_what_comes_in_and_goes_out_and_nothing_between(name, autocast):
    layer, x = SparseLinear(300, 12, 0.3), torch.randn(3, 300, requires_grad=True)
    grad = torch.randn(3, 12).to(autocast)
    found = []
    for backward_within in (True, False):
        with kernels.use(name):
            with torch.autocast("cpu", autocast):
                out = layer(x)
                if backward_within:
                    found.append(torch.autograd.grad(out, (*layer.parameters(), x), grad))
            if not backward_within:
                found.append(torch.autograd.grad(out, (*layer.parameters(), x), grad))
    rounded = x.detach().to(autocast).double()
    weight, wide = layer.to_dense().detach().double(), grad.double()
    torch.testing.assert_close(out, F.linear(rounded, weight, layer.bias.double()).to(autocast), rtol=1e-2, atol=1e-2)
    of_values = (wide.t() @ rounded).flatten()[layer.flat()].float()
    for of_connections, of_bias, of_input in found:
        torch.testing.assert_close(of_connections, of_values)
        torch.testing.assert_close(of_bias, wide.sum(0).float())
        torch.testing.assert_close(of_input, (wide @ weight).to(autocast).float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("autocast", HALVES)
@pytest.mark.parametrize("where", ["around", "within", "off within"])
def test_compiled_under_autocast(where, autocast):
    torch._dynamo.reset()
    layer, x = SparseLinear(20, 12, 0.3), torch.randn(3, 20)

    def within(x):
        with torch.autocast("cpu", autocast):
            return layer(x)

    def off_within(x):
        with torch.autocast("cpu", enabled=False):
            return layer(x)

    function = {"around": layer, "within": within, "off within": off_within}[where]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for run in (function, compiled):
        with torch.autocast("cpu", autocast, enabled=where != "within"):
            out = run(x)
        out.float().square().sum().backward()
        results.append((out, layer.values.grad, layer.bias.grad))
        layer.zero_grad()
    assert results[1][0].dtype == (torch.float32 if where == "off within" else autocast)
    torch.testing.assert_close(results[1], results[0])


def losses(model, optimizer, forward, scaler, device, dtype=torch.float32, steps=60):
    inputs, labels = torch.randn(64, 12, device=device, dtype=dtype), torch.randint(4, (64,), device=device)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(inputs).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield loss.item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", HALVES)
@pytest.mark.parametrize("evolution", [SET(interval=5), RigL(interval=5)])
def test_training_with_evolution_under_autocast(evolution, autocast, device):
    model = mlp(12, 32, 4).to(device)
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters(), 0.01), 0.4, evolution=evolution)
    scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)

    def forward(inputs):
        with torch.autocast(device, autocast):
            return model(inputs)

    seen = list(losses(model, optimizer, forward, scaler, device))
    assert seen[-1] < 0.6 * seen[0]
    assert [record.step for record in optimizer.history] == list(range(5, 61, 5))
    assert model[0].values.dtype == torch.float32


@pytest.mark.parametrize("evolution", [SET(interval=1), RigL(interval=1)])
def test_a_step_within_autocast_is_that_without(evolution):
    states = []
    for within in (True, False):
        torch.manual_seed(0)
        model = mlp(12, 32, 4)
        model, optimizer = sparsify(model, torch.optim.Adam(model.parameters(), 0.01), 0.4, evolution=evolution, seed=1)
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(8, 12)).float().square().mean()
            with torch.autocast("cpu", torch.bfloat16, enabled=within):
                loss.backward()
                optimizer.step()
        states.append((model.state_dict(), optimizer.state_dict()))
    assert_same(*states)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("evolution", [SET(interval=5), RigL(interval=5)])
def test_a_model_in_half_precision_trains_and_evolves(evolution, before, convert, device):
    model = mlp(12, 32, 4).to(device)
    model = convert(model) if before else model
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    model, optimizer = sparsify(model, optimizer, 0.4, evolution=evolution)
    values = model[0].values
    model = model if before else convert(model)
    assert model[0].values is values
    dtype = values.dtype
    assert dtype in HALVES
    off = torch.amp.GradScaler(device, enabled=False)
    seen = list(losses(model, optimizer, model, off, device, dtype))
    assert seen[-1] < 0.6 * seen[0]
    assert {tensor.dtype for p in model.parameters() for tensor in (p, p.grad)} == {dtype}
    assert optimizer.state[values]["momentum_buffer"].dtype == dtype
    assert {index.dtype for index in model.buffers()} == {torch.int32}
    assert len(optimizer.history) == 12
