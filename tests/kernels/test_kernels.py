import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SparseLinear
from sparsify._src import kernels, topology
from sparsify._src.native import library
from tests.support.marks import EACH, needs_native


def test_the_supported_dtypes_are_those_that_the_kernels_take():
    for dtype in kernels.SUPPORTED:
        layer = SparseLinear(20, 12, 0.3).to(dtype)
        layer(torch.randn(3, 20).to(dtype)).sum().backward()
        assert layer.values.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65, 100, 129, 300])
@pytest.mark.parametrize(
    ("outs", "ins", "density"),
    [(12, 20, 0.3), (16, 16, 1.0), (1, 50, 0.5), (50, 1, 0.5), (33, 47, 0.001), (300, 785, 0.04), (31, 4100, 0.01)],
)
@pytest.mark.parametrize("name", EACH)
def test_products_and_gradients_against_dense_float64(name, outs, ins, density, batch, dtype):
    layer = SparseLinear(ins, outs, density, dtype=dtype)
    x = torch.randn(batch, ins, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, outs, dtype=dtype)
    with kernels.use(name):
        out = layer(x)
        out.backward(grad)
    weight, wide = layer.to_dense().detach().double(), x.detach().double()
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(out.double(), F.linear(wide, weight, layer.bias.detach().double()), **close)
    torch.testing.assert_close(x.grad.double(), grad.double() @ weight, **close)
    expected = (grad.double().t() @ wide).flatten()[layer.flat()]
    torch.testing.assert_close(layer.values.grad.double(), expected, **close)
    torch.testing.assert_close(layer.bias.grad.double(), grad.double().sum(0), **close)


@needs_native
@pytest.mark.parametrize("level", range(kernels.native.LEVEL + 1))
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("outs", "ins", "density"), [(70, 33, 0.3), (60, 12_000, 0.02), (12_000, 60, 0.02)])
def test_every_form_of_the_native_kernels(outs, ins, density, dtype, index, level, monkeypatch):
    """Each instruction set and index type, and layers so long that they are done in blocks."""
    monkeypatch.setattr(kernels.native, "LEVEL", level)
    monkeypatch.setattr(topology, "index_dtype", lambda nnz, shape: index)
    layer = SparseLinear(ins, outs, density, dtype=dtype)
    assert layer.csc_order.dtype == index
    for batch in (1, 2, 5, 9, 20, 40, 70, 130):
        x = torch.randn(batch, ins, dtype=dtype, requires_grad=True)
        grad = torch.randn(batch, outs, dtype=dtype)
        with kernels.use("native"):
            out = layer(x)
            gradients = torch.autograd.grad(out, (x, layer.values, layer.bias), grad)
        weight = layer.to_dense().detach().double()
        expected = x.double() @ weight.t() + layer.bias.double(), grad.double() @ weight
        of_values = (grad.double().t() @ x.detach().double()).flatten()[layer.flat()]
        for got, want in zip((out, *gradients), (*expected, of_values, grad.double().sum(0)), strict=True):
            tolerance = 1e-4 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch 2.15's own
@pytest.mark.parametrize("name", EACH)
def test_the_operators_are_well_formed(name):
    layer, x = SparseLinear(30, 20, 0.2), torch.randn(5, 30, requires_grad=True)
    indices = (layer.crow, layer.col, layer.ccol, layer.csc_row, layer.csc_order)
    with kernels.use(name):
        for bias in (layer.bias, None):
            torch.library.opcheck(torch.ops.sparsify.linear, (x, layer.values, bias, *indices))


@pytest.mark.parametrize("name", EACH)
def test_backward_uses_the_kernels_of_forward(name, monkeypatch):
    called = []
    for other, kernel in kernels.dispatch.KERNELS.items():
        monkeypatch.setattr(kernel, "backward", lambda *_, other=other: called.append(other) or (None, None, None))
    layer = SparseLinear(30, 20, 0.2)
    with kernels.use(name):
        out = layer(torch.randn(2, 30))
    out.sum().backward()
    assert called == [name]


@needs_native
def test_kernels_that_were_asked_for_and_do_not_serve_are_an_error():
    values = torch.randn(3, device="meta")
    with kernels.use("native"), pytest.raises(RuntimeError, match="'native', which were asked for, do not serve"):
        kernels.dispatch.kernel_for(values)


@pytest.mark.parametrize("name", EACH)
def test_hub_rows_and_columns_and_empty_ones(name):
    dense = torch.zeros(40, 70, dtype=torch.float64)
    dense[7], dense[:, 3] = torch.randn(70, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    linear = nn.Linear(70, 40, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(dense)
    layer = SparseLinear.from_linear(linear, 109 / 2800, start="magnitude")
    x = torch.randn(19, 70, dtype=torch.float64, requires_grad=True)
    with kernels.use(name):
        out = layer(x)
        out.sum().backward()
    torch.testing.assert_close(out, x @ dense.t())
    torch.testing.assert_close(x.grad, dense.sum(0).expand(19, 70))


@pytest.mark.parametrize("wants", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", EACH)
def test_only_the_gradients_asked_for(name, wants):
    layer = SparseLinear(30, 20, 0.2)
    layer.values.requires_grad_(wants[1])
    x = torch.randn(5, 30, requires_grad=wants[0])
    with kernels.use(name):
        layer(x).sum().backward()
    assert (x.grad is not None, layer.values.grad is not None) == wants
    if wants[0]:
        torch.testing.assert_close(x.grad, layer.to_dense().detach().sum(0).expand(5, 30))
    if wants[1]:
        torch.testing.assert_close(layer.values.grad, x.sum(0)[layer.col.long()])


@pytest.mark.parametrize("name", EACH)
def test_infinities_and_nans_stay_where_they_belong(name):
    layer = SparseLinear(30, 20, 0.2, bias=False)
    x = torch.randn(17, 30)
    x[3, 4], x[5, 6] = float("inf"), float("nan")
    with kernels.use(name):
        out = layer(x)
    touched = torch.zeros(17, 20, dtype=torch.bool)
    touched[3, topology.rows(layer.crow, layer.nnz)[layer.col == 4]] = True
    touched[5, topology.rows(layer.crow, layer.nnz)[layer.col == 6]] = True
    assert torch.equal(~torch.isfinite(out), touched)


@pytest.mark.parametrize("name", EACH)
def test_two_runs_are_equal_to_the_last_bit(name):
    layer, x = SparseLinear(200, 120, 0.3), torch.randn(64, 200)
    with kernels.use(name):
        first, second = layer(x), layer(x)
        assert torch.equal(first, second)
        gradients = [torch.autograd.grad(out.square().sum(), layer.values)[0] for out in (first, second)]
    assert torch.equal(*gradients)


def product_and_gradients(layer, x, threads):
    """By so many threads; there may be more of them than processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = layer(x)
        return out, *torch.autograd.grad(out.square().sum(), (x, layer.values, layer.bias))
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("room", [2**30, 40_000])
@pytest.mark.parametrize("batch", [17, 70, 128, 130, 300])
def test_the_result_does_not_depend_on_the_number_of_threads_nor_on_who_packs(batch, room, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    monkeypatch.setattr(kernels.native, "ROOM", room)
    layer, x = SparseLinear(500, 300, 0.1), torch.randn(batch, 500, requires_grad=True)
    expected = product_and_gradients(layer, x, 1)
    for threads in 2, 3, 4, 8:
        for sharers in 1, 2, 100:
            monkeypatch.setattr(kernels.native, "SHARERS", sharers)
            found = product_and_gradients(layer, x, threads)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (threads, sharers)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("room", [1, 3000, 50_000])
@pytest.mark.parametrize("batch", [3, 64, 300])
def test_panels_in_blocks(batch, room, dtype, monkeypatch):
    monkeypatch.setattr(kernels.native, "ROOM", room)
    layer, x = SparseLinear(400, 300, 0.3, dtype=dtype), torch.randn(batch, 400, dtype=dtype, requires_grad=True)
    found = product_and_gradients(layer, x, 2)
    out = F.linear(x, layer.to_dense(), layer.bias)
    expected = out, *torch.autograd.grad(out.square().sum(), (x, layer.values, layer.bias))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-11)


@needs_native
@pytest.mark.parametrize("sharers", [1, 100])
def test_threads_that_pack_together_end_where_indices_lead_outside(sharers, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    monkeypatch.setattr(kernels.native, "SHARERS", sharers)
    layer, x = SparseLinear(500, 300, 0.1), torch.randn(70, 500, requires_grad=True)
    layer.csc_row.data[-1] = layer.col.data[5] = 10**9
    with pytest.raises(ValueError, match="indices must be a topology"):
        product_and_gradients(layer, x, 6)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("number", [-(2**31), 2**31 - 1])
def test_starts_that_lead_outside_are_refused_wherever_they_are(number, threads, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    layer, x = SparseLinear(30, 20, 0.5), torch.randn(70, 30, requires_grad=True)
    out = layer(x)
    for starts, run in (layer.crow, lambda: layer(x)), (layer.ccol, lambda: out.sum().backward(retain_graph=True)):
        for place in range(len(starts)):
            before = int(starts[place])
            starts.data[place] = number
            threads_before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                with pytest.raises(ValueError, match="indices must be a topology"):
                    run()
            finally:
                torch.set_num_threads(threads_before)
            starts.data[place] = before
    layer(x).sum().backward()


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "half"])
def test_the_room_for_panels_is_a_number_of_bytes(given, monkeypatch):
    monkeypatch.setenv("SPARSIFY_PANEL_BYTES", given)
    with pytest.raises(ValueError, match=f"SPARSIFY_PANEL_BYTES must be a number of bytes above 0, got '{given}'"):
        kernels.native._room()
    monkeypatch.setenv("SPARSIFY_PANEL_BYTES", "4096")
    assert kernels.native._room() == 4096


def test_without_native_kernels_the_slowness_is_said_once(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", None)
    kernels.dispatch._warn_of_slowness.cache_clear()
    layer, x = SparseLinear(5, 4, 0.5), torch.randn(3, 5)
    with pytest.warns(UserWarning, match="native CPU kernels were not compiled"):
        layer(x)
    layer(x)  # no second warning, which would be an error


def test_the_choice_can_be_read_and_forced():
    assert "torch_sparse" in kernels.available()
    with pytest.raises(ValueError, match=r"kernels must be one of .* got 'cuda'"), kernels.use("cuda"):
        pass
    command = "from sparsify import kernels; print(kernels.available())"
    environment = {**os.environ, "SPARSIFY_KERNELS": "fastest"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert "kernels must be one of" in done.stderr
