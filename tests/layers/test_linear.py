import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SparseLinear
from sparsify._src.lazy import torch_sparse


def dense_twin(layer):
    linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.values.dtype, bias=layer.bias is not None)
    linear.load_state_dict(layer.to_linear().state_dict())
    return linear


@pytest.mark.parametrize("shape", [(20,), (1, 20), (7, 20), (0, 20), (3, 4, 20), (2, 0, 20), (2, 1, 3, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradients_are_those_of_the_dense_layer(shape, bias):
    layer = SparseLinear(20, 12, 0.3, bias, dtype=torch.float64)
    linear = dense_twin(layer)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(*shape[:-1], 12, dtype=torch.float64)
    out, expected = layer(x), linear(y)
    assert out.shape == expected.shape
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer.values.grad, linear.weight.grad.flatten()[layer.flat()])
    if bias:
        torch.testing.assert_close(layer.bias.grad, linear.bias.grad)


@pytest.mark.parametrize("make", [lambda x: x.t(), lambda x: x[:1].expand(9, 20), lambda x: x[::2]])
def test_strided_inputs(make):
    layer = SparseLinear(20, 12, 0.3, dtype=torch.float64)
    x = torch.randn(20, 20, dtype=torch.float64)
    torch.testing.assert_close(layer(make(x)), dense_twin(layer)(make(x)))


def test_gradcheck():
    layer = SparseLinear(6, 5, 0.4, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)

    def run(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.values, layer.bias))


def test_empty_rows_empty_columns_and_one_connection():
    linear = nn.Linear(5, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.zero_()[2, 3] = 7.0
    layer = SparseLinear.from_linear(linear, 1 / 20, start="magnitude")
    assert layer.nnz == 1
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))


def test_every_place_a_connection():
    layer = SparseLinear(5, 4, 1.0, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense_twin(layer)(x))


def test_weight_is_a_sparse_tensor_attached_to_autograd():
    layer = SparseLinear(20, 12, 0.3)
    weight = layer.weight
    assert isinstance(weight, torch_sparse().SparseTensor)
    assert weight.sizes() == [12, 20]
    assert torch.equal(weight.to_dense(), layer.to_dense())
    (weight @ torch.randn(20, 3)).sum().backward()
    assert layer.values.grad.abs().sum() > 0
    # the cached column order is the true one
    assert torch.equal(weight.t().to_dense(), layer.to_dense().t())


def test_weight_can_be_set_to_itself_alone():
    layer, other = SparseLinear(20, 12, 0.3), SparseLinear(20, 12, 0.3)
    before = layer.to_dense()
    layer.weight = layer.weight
    assert torch.equal(layer.to_dense(), before)
    for weight in other.weight, torch.zeros(12, 20), None:
        with pytest.raises(AttributeError, match="weight must be the layer's own"):
            layer.weight = weight
    assert torch.equal(layer.to_dense(), before)


def test_initial_values_are_scaled_to_the_sparse_fan_in():
    layer = SparseLinear(1000, 400, 0.1)
    assert layer.nnz == 40_000
    assert layer.values.abs().max() <= 0.1
    assert layer.values.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)


def test_two_new_layers_differ_and_manual_seed_decides_both():
    def pair(seed):
        torch.manual_seed(seed)
        return SparseLinear(20, 20, 0.3), SparseLinear(20, 20, 0.3)

    (one, two), (again, _) = pair(1), pair(1)
    assert not torch.equal(one.flat(), two.flat())
    assert torch.equal(one.to_dense(), again.to_dense())


def test_from_linear_random_scales_and_magnitude_keeps():
    linear = nn.Linear(30, 20)
    random = SparseLinear.from_linear(linear, 0.25)
    assert torch.allclose(random.values, linear.weight.flatten()[random.flat()] * 2)
    largest = SparseLinear.from_linear(linear, 0.25, start="magnitude")
    assert largest.nnz == 150
    assert torch.equal(largest.values, linear.weight.flatten()[largest.flat()])
    weakest = linear.weight.abs().flatten().sort().values
    assert largest.values.abs().min() == weakest[450]
    with pytest.raises(ValueError, match='start must be "random" or "magnitude"'):
        SparseLinear.from_linear(linear, 0.25, start="largest")


def test_what_hangs_on_the_linear_survives():
    linear = nn.Linear(6, 5, dtype=torch.float64).eval()
    linear.bias.requires_grad_(False)
    linear.note = "mine"
    calls = []
    linear.register_forward_hook(lambda *_: calls.append("forward"))
    linear(torch.randn(2, 6, dtype=torch.float64)).sum().backward()
    layer = SparseLinear.from_linear(linear, 0.5)
    assert layer.bias is linear.bias
    assert not layer.training
    assert layer.note == "mine"
    assert layer.values.dtype == torch.float64
    assert torch.equal(layer.values.grad, linear.weight.grad.flatten()[layer.flat()])
    calls.clear()
    layer(torch.randn(2, 6, dtype=torch.float64))
    assert calls == ["forward"]


def test_to_linear_round_trip():
    layer = SparseLinear(6, 5, 0.5)
    again = SparseLinear.from_linear(layer.to_linear(), 0.5, start="magnitude")
    assert torch.equal(again.flat(), layer.flat())
    assert torch.equal(again.values, layer.values)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(3, 19), ValueError, r"input must be \(\*, 20\), got \(3, 19\)"),
        (torch.tensor(1.0), ValueError, r"input must be \(\*, 20\), got \(\)"),
        (torch.randn(3, 20, device="meta"), ValueError, "input must be on the layer's device cpu, got meta"),
        (torch.randn(3, 20).double(), TypeError, "input must have the layer's dtype torch.float32, got torch.float64"),
    ],
)
def test_bad_input_is_named(x, error, message):
    with pytest.raises(error, match=message):
        SparseLinear(20, 12, 0.3)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 5, 0.1), "in_features must be at least 1"), ((5, -1, 0.1), "out_features"), ((5, 5, 1.5), "density must be")],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    layer = SparseLinear(2000, 10, 0.5).to(dtype)
    x = torch.randn(4, 2000).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    expected = F.linear(x.double(), layer.to_dense().double(), layer.bias.double())
    assert (out.double() - expected).abs().max() < 3 * torch.finfo(dtype).eps * expected.abs().max()


def test_state_dict_carries_values_and_topology_only():
    state = SparseLinear(20, 12, 0.3).state_dict()
    assert list(state) == ["values", "bias", "crow", "col"]


@pytest.mark.parametrize("density", [0.3, 0.1, 0.5])  # the same nnz, less, more
def test_a_sparse_checkpoint_of_another_topology_loads(density):
    source, target = SparseLinear(20, 12, density), SparseLinear(20, 12, 0.3, generator=torch.Generator())
    values = target.values
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert target.values is values
    x = torch.randn(3, 20)
    assert torch.equal(target(x), source(x))
    target(x).sum().backward()
    assert torch.equal(target.weight.t().to_dense(), source.to_dense().t())


def test_a_dense_checkpoint_loads_at_the_layers_topology():
    layer, linear = SparseLinear(20, 12, 0.3), nn.Linear(20, 12)
    flat = layer.flat().clone()
    with pytest.warns(UserWarning, match="magnitude was left out"):
        layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.flat(), flat)
    assert torch.equal(layer.values, linear.weight.flatten()[flat])
    assert torch.equal(layer.bias, linear.bias)


def corrupt(state, key, value):
    state[key] = value
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: corrupt(s, "col", s["col"] + 100), "col must be in"),
        (lambda s: corrupt(s, "col", s["col"].flip(0)), "col must rise strictly"),
        (lambda s: corrupt(s, "crow", s["crow"] + 1), "crow must rise"),
        (lambda s: corrupt(s, "crow", s["crow"][:-1]), "crow must have out_features"),
        (lambda s: corrupt(s, "values", s["values"][:-1]), "col must have one entry for each of the 71 values"),
        (lambda s: corrupt(s, "values", s["values"].view(8, 9)), "values must be a vector"),
        (lambda s: corrupt(s, "col", s["col"].float()), "int32 or int64"),
        (lambda s: {k: v for k, v in s.items() if k != "crow"}, "Missing key.*crow"),
        (lambda s: {"weight": torch.randn(12, 21), "bias": s["bias"]}, r"weight must be \(12, 20\), got \(12, 21\)"),
        (lambda s: {**s, "weight": torch.randn(12, 20)}, "Unexpected key.*weight"),
        (lambda s: {**s, "extra": torch.randn(1)}, "Unexpected key.*extra"),
    ],
)
def test_a_corrupt_checkpoint_is_refused_and_the_layer_left_as_it_was(change, message):
    layer = SparseLinear(20, 12, 0.3)
    state = copy.deepcopy(layer.state_dict())
    before, x = copy.deepcopy(state), torch.randn(3, 20)
    expected = layer(x)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(change(state))
    for key, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert torch.equal(layer(x), expected)


def test_strict_false_does_not_take_values_without_their_topology():
    layer = SparseLinear(20, 12, 0.3)
    before = layer.values.clone()
    result = layer.load_state_dict({"values": torch.zeros(layer.nnz)}, strict=False)
    assert set(result.missing_keys) == {"crow", "col", "bias"}
    assert torch.equal(layer.values, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_work_on_their_own(duplicate):
    layer = SparseLinear(20, 12, 0.3)
    other = duplicate(layer)
    x = torch.randn(3, 20)
    assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        other.values.zero_()
    assert not torch.equal(layer(x), other(x))


def test_with_as_many_connections_values_and_gradient_move_in_place():
    layer = SparseLinear(6, 5, 0.5)
    layer(torch.randn(2, 6)).sum().backward()
    values, grad = layer.values, layer.values.grad  # DistributedDataParallel's is a view of the bucket that it sends
    new = torch.randn(2, layer.nnz)
    layer.set_topology(layer.flat() + 0, new[0], new[1])
    assert layer.values is values
    assert layer.values.grad is grad
    assert torch.equal(values, new[0])
    assert torch.equal(grad, new[1])


def test_a_layer_far_beyond_what_could_be_dense():
    layer = SparseLinear(300_000, 200_000, 1e-6, dtype=torch.float64)  # 6e10 places
    assert layer.nnz == 60_000
    for batch in (1, 3, 40):
        x = torch.randn(batch, 300_000, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(batch, 200_000, dtype=torch.float64)
        out = layer(x)
        gradients = torch.autograd.grad(out, (x, layer.values), grad)
        row, col, values = layer.flat() // 300_000, layer.col.long(), layer.values.detach()
        expected = layer.bias.repeat(batch, 1).index_add(1, row, x[:, col] * values)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(gradients[0], torch.zeros_like(x).index_add(1, col, grad[:, row] * values))
        torch.testing.assert_close(gradients[1], (x[:, col] * grad[:, row]).sum(0).detach())


def test_dtype_moves_leave_the_topology_alone():
    layer = SparseLinear(20, 12, 0.3).double()
    assert layer.col.dtype == torch.int32
    assert layer(torch.randn(3, 20).double()).dtype == torch.float64


def test_indices_that_something_else_writes_are_checked_before_they_are_used():
    layer, other = SparseLinear(12, 16, 0.3), SparseLinear(12, 16, 0.3)
    x = torch.randn(4, 12)

    def refused(name):
        for use in (lambda: layer(x), layer.to_dense, layer.state_dict, lambda: layer.weight):
            with pytest.raises(
                ValueError, match=f"indices must be a topology, got what something else .*: {name} must"
            ):
                use()

    for mine, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))
    assert torch.equal(layer.flat(), other.flat())
    layer.csc_order.zero_()  # what follows from others is made anew
    layer(x).sum().backward()
    assert torch.equal(layer.csc_order, other.csc_order)
    layer.col.fill_(11)
    refused("col")
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


def test_a_layer_made_in_inference_mode_serves():
    with torch.inference_mode():
        layer, x = SparseLinear(12, 16, 0.3), torch.randn(4, 12)
        torch.testing.assert_close(layer(x), F.linear(x, layer.to_dense(), layer.bias))
