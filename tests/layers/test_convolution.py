"""`SparseConv1d`, `SparseConv2d` and `SparseConv3d`: whatever one may do with nn.Conv1d, nn.Conv2d and nn.Conv3d."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparsify import SparseConv1d, SparseConv2d, SparseConv3d, densify
from sparsify.interchange import to_csr, to_scipy

KINDS = {nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d, nn.Conv3d: SparseConv3d}
MODES = ["zeros", "reflect", "replicate", "circular"]
ATTRIBUTES = "in_channels out_channels kernel_size stride padding dilation groups padding_mode".split()


def pruned(conv, density):
    """`conv` with most of its weights zero."""
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) < density
        conv.weight.view(-1)[0] = 1.0
    return conv


def sparse(conv, density=0.3):
    """A pruned convolution, and the sparse layer that takes its place."""
    conv = pruned(conv, density)
    return conv, KINDS[type(conv)].from_conv(conv, start="nonzero")


def gradients(layer, x, grad):
    x = x.detach().requires_grad_()
    out = layer(x)
    weight = layer.weight if isinstance(layer, tuple(KINDS)) else layer.values
    wanted = [x, weight] + ([] if layer.bias is None else [layer.bias])
    return out, *torch.autograd.grad(out, wanted, grad)


def check_twins(conv, layer, x, **close):
    with torch.no_grad():
        grad = torch.randn_like(conv(x))
    out, of_x, of_weight, *of_bias = gradients(conv, x, grad)
    expected = out, of_x, of_weight.flatten()[layer.flat()], *of_bias
    for one, other in zip(gradients(layer, x, grad), expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, **close)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch's own
@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(list(KINDS)),
    mode=st.sampled_from(MODES),
    padding=st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    batch=st.sampled_from([None, 0, 1, 3, 17]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_all_that_the_dense_one_computes(
    kind, mode, padding, kernel, stride, dilation, groups, bias, batch, dtype, data
):
    dims = list(KINDS).index(kind) + 1
    stride = 1 if padding == "same" else stride
    options = {"padding_mode": mode, "bias": bias, "groups": groups, "dtype": dtype}
    conv = kind(2 * groups, 4, kernel, stride, padding, dilation, **options)
    least = dilation * (kernel - 1) + 1  # more than what any mode pads with
    size = [least + data.draw(st.integers(0, 5 if dims < 3 else 2)) for _ in range(dims)]
    x = torch.randn(*([] if batch is None else [batch]), 2 * groups, *size, dtype=dtype)
    conv, layer = sparse(conv)
    if batch == 0 and mode == "reflect" and padding:
        return  # PyTorch's own padding refuses some of these
    try:
        conv(x)
    except RuntimeError:
        with pytest.raises((RuntimeError, ValueError)):
            layer(x)
        return
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    check_twins(conv, layer, x, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_the_attributes_of_the_dense_one(kind):
    options = {"padding": 2, "stride": 2, "dilation": 3, "groups": 2, "padding_mode": "circular", "bias": False}
    conv, made = kind(4, 6, 3, **options), KINDS[kind](4, 6, 3, 0.5, **options)
    for layer in made, KINDS[kind].from_conv(conv, 0.5):
        assert [getattr(layer, name) for name in ATTRIBUTES] == [getattr(conv, name) for name in ATTRIBUTES]
        assert layer.bias is None
        assert layer.weight_shape == tuple(conv.weight.shape)
        assert layer.shape == (6, 2 * 3 ** len(conv.kernel_size))
        assert layer.nnz == round(0.5 * conv.weight.numel())
        assert "padding_mode='circular'" in repr(layer)
    positional = KINDS[kind](4, 6, 3, 0.5, 2, 1, 2, 2, True, "reflect")
    dense = kind(4, 6, 3, 2, 1, 2, 2, True, "reflect")
    assert [getattr(positional, name) for name in ATTRIBUTES] == [getattr(dense, name) for name in ATTRIBUTES]


def test_one_number_stands_for_all_dimensions_however_it_is_given():
    conv, layer = sparse(nn.Conv2d(3, 4, 3, (1,), (2,), [1]))
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(layer(x), conv(x))
    conv.stride = layer.stride = 2
    conv.padding = layer.padding = 1
    torch.testing.assert_close(layer(x), conv(x))
    conv.padding = layer.padding = (0, 2)
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_accumulated_in_float32(mode, dtype):
    conv, layer = sparse(nn.Conv2d(64, 8, 3, padding=1, padding_mode=mode))
    conv, layer, x = conv.to(dtype), layer.to(dtype), torch.randn(4, 64, 6, 7).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    expected = conv.double()(x.double())
    assert (out.double() - expected).abs().max() < 3 * torch.finfo(dtype).eps * expected.abs().max()
    out.sum().backward()
    assert layer.values.grad.dtype == layer.bias.grad.dtype == dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, mode):
    conv, layer = sparse(nn.Conv2d(4, 8, 3, padding=1, padding_mode=mode))
    x = torch.randn(3, 4, 6, 7, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out, expected = layer(x), conv(x)
    assert out.dtype == expected.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
    out.sum().backward()
    assert (layer.values.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)
    double, wide = layer.double(), x.double()
    with torch.autocast("cpu", dtype):
        assert double(wide).dtype == torch.float64  # as PyTorch's, which leaves float64 alone


STRIDED = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "negative": torch._neg_view,
    "conjugated": lambda x: torch.complex(x, x).conj().imag,
    "a parameter": nn.Parameter,
}


@pytest.mark.parametrize("how", STRIDED)
def test_inputs_and_gradients_of_every_layout(how):
    conv, layer = sparse(nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64))
    x = STRIDED[how](torch.randn(3, 4, 6, 7, dtype=torch.float64))
    torch.testing.assert_close(layer(x), conv(x), check_stride=False)
    grad = STRIDED[how](torch.randn(3, 6, 6, 7, dtype=torch.float64)).detach()
    for one, other in zip(gradients(layer, x, grad)[1::2], gradients(conv, x, grad)[1::2], strict=True):
        torch.testing.assert_close(one, other, check_stride=False)


def test_a_model_in_channels_last_format_stays_as_it_is():
    conv, layer = sparse(nn.Conv2d(4, 6, 3))
    x = torch.randn(2, 4, 5, 6)
    expected = layer(x)
    model = nn.Sequential(layer, nn.BatchNorm2d(6)).to(memory_format=torch.channels_last)
    assert torch.equal(model[0](x.contiguous(memory_format=torch.channels_last)), expected)
    last = conv.to(memory_format=torch.channels_last)
    again = SparseConv2d.from_conv(last, start="nonzero")
    assert torch.equal(again.flat(), layer.flat())
    assert torch.equal(again.values, layer.values)


BAD_INPUTS = [
    (torch.randn(3, 5, 6, 7), ValueError, r"input must be \(batch, 4, height, width\) or \(4, height, width\), got"),
    (torch.randn(4, 6), ValueError, r"got \(4, 6\)"),
    (torch.randn(1, 2, 4, 6, 7), ValueError, r"got \(1, 2, 4, 6, 7\)"),
    (torch.tensor(1.0), ValueError, r"got \(\)"),
    (torch.randn(3, 4, 2, 7), ValueError, r"input must be at least as large as the window \(3, 3\)"),
    (torch.randn(3, 4, 0, 7), ValueError, "at least as large as the window"),
    (torch.randn(3, 4, 6, 7, device="meta"), ValueError, "input must be on the layer's device cpu, got meta"),
    (torch.randn(3, 4, 6, 7).double(), TypeError, "input must have the layer's dtype torch.float32, got torch.float64"),
    (torch.ones(3, 4, 6, 7, dtype=torch.int64), TypeError, "got torch.int64"),
    (torch.randn(3, 4, 6, 7).to_sparse(), TypeError, "input must be a dense tensor, got torch.sparse_coo"),
    (torch.nested.nested_tensor([torch.randn(4, 6, 7)] * 2, layout=torch.jagged), TypeError, "got a nested one"),
    (torch.complex(torch.ones(3, 4, 6, 7), torch.ones(3, 4, 6, 7)), TypeError, "got torch.complex64"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_INPUTS, ids=[message for *_, message in BAD_INPUTS])
def test_bad_input_is_named(x, error, message):
    layer = SparseConv2d(4, 6, 3, 0.3)
    with pytest.raises(error, match=message):
        layer(x)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_layer_of_another_dtype_is_named():
    with pytest.raises(TypeError, match=r"the layer's dtype must be one of .* got torch\.complex64"):
        SparseConv2d(4, 6, 3, 0.3).to(torch.complex64)(torch.randn(1, 4, 6, 7))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # PyTorch's own of kernel_size=0
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 5, 3, 0.1), {}, ValueError, "in_channels must be at least 1, got 0"),
        ((5, -1, 3, 0.1), {}, ValueError, "out_channels must be at least 1, got -1"),
        ((5, 5, 0, 0.1), {}, ValueError, r"kernel_size, stride, .* must be at least 1, .* got kernel_size=\(0, 0\)"),
        ((5, 5, (3,), 0.1), {}, ValueError, r"kernel_size must be a number, or 2 of them, got \(3,\)"),
        ((5, 5, (3, 3, 3), 0.1), {}, ValueError, "kernel_size must be a number, or 2 of them"),
        ((5, 5, 3, 1.5), {}, ValueError, "density must be in"),
        ((5, 5, 3, 0.0), {}, ValueError, "density must be in"),
        ((5, 5, 3, "much"), {}, TypeError, "density must be a number"),
        ((5, 5, 3, 0.1), {"stride": 0}, ValueError, r"stride=\(0, 0\)"),
        ((5, 5, 3, 0.1), {"stride": (1, 2, 3)}, ValueError, r"stride must be a number, or 2 of them, got \(1, 2, 3\)"),
        ((5, 5, 3, 0.1), {"padding": -1}, ValueError, r"padding at least 0, got .*padding=\(-1, -1\)"),
        ((5, 5, 3, 0.1), {"padding": (1, 1, 1)}, ValueError, "padding must be a number, or 2 of them"),
        ((5, 5, 3, 0.1), {"dilation": 0}, ValueError, r"dilation=\(0, 0\)"),
        ((5, 5, 3, 0.1), {"groups": 0}, ValueError, "groups must be a positive integer"),
        ((4, 5, 3, 0.1), {"groups": 2}, ValueError, "out_channels must be divisible by groups"),
        ((5, 5, 3, 0.1), {"padding": "much"}, ValueError, "Invalid padding string 'much'"),
        ((5, 5, 3, 0.1), {"padding": "same", "stride": 2}, ValueError, "not supported for strided"),
        ((5, 5, 3, 0.1), {"padding_mode": "much"}, ValueError, "padding_mode must be one of"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        SparseConv2d(*arguments, **options)


SPOILED = {
    "stride": [(-1, -1), (0, 1), (-(2**63), 2**63 - 1), (1, 1, 1), ()],
    "dilation": [(-1, -1), (0, 1), (2**40, 2**40), (2**63 - 1, 1), (1, 1, 1)],
    "padding": [(-1, -1), (2**40, 2**40), (2**62, 0), (-(2**63), 0), (1, 1, 1)],
    "kernel_size": [(-1, -1), (0, 3), (2**40, 2**40), (3, 3, 3), (3,), (4, 3)],
    "groups": [0, -1, 3, 4, 2**40],
    "in_channels": [3],
}


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, every in SPOILED.items() for bad in every], ids=str)
def test_attributes_that_were_spoiled_are_refused_and_never_crash(name, bad):
    layer, x = SparseConv2d(4, 6, 3, 0.3, padding=1), torch.randn(2, 4, 6, 7)
    setattr(layer, name, bad)
    with pytest.raises((ValueError, RuntimeError, MemoryError)):
        layer(x)
    setattr(layer, "stride" if name == "stride" else "dilation", (2**40, 1) if name == "stride" else (1, 1))
    if name == "stride":
        assert layer(x).shape == (2, 6, 1, 7)  # PyTorch moves so far too


@pytest.mark.parametrize("conv", [nn.Conv1d(3, 4, 3), nn.Linear(3, 4), nn.ConvTranspose2d(3, 4, 3), "conv"])
def test_a_layer_of_another_kind_is_refused(conv):
    with pytest.raises(TypeError, match=r"conv must be an nn\.Conv2d, got"):
        SparseConv2d.from_conv(conv, 0.5)


def test_starts_of_a_layer():
    conv = nn.Conv2d(8, 6, 3)
    largest = SparseConv2d.from_conv(conv, 0.25, start="magnitude")
    weakest = conv.weight.abs().flatten().sort().values
    assert largest.values.abs().min() == weakest[-largest.nnz]
    random = SparseConv2d.from_conv(conv, 0.25, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(random.values, conv.weight.flatten()[random.flat()] * 2)
    for arguments, error in (
        ((0.25, "largest"), ValueError),
        ((None, "random"), TypeError),
        ((0.25, "nonzero"), ValueError),
        ((2.0, "random"), ValueError),
    ):
        with pytest.raises(error, match="must"):
            SparseConv2d.from_conv(conv, arguments[0], start=arguments[1])


def test_initial_values_are_scaled_to_the_sparse_fan_in():
    layer = SparseConv2d(32, 64, 3, 0.1)
    bound = (0.1 * 32 * 9) ** -0.5
    assert 0.95 * bound < layer.values.abs().max() <= bound
    assert layer.bias.abs().max() <= (32 * 9) ** -0.5


def test_what_hangs_on_the_convolution_survives():
    conv = nn.Conv2d(3, 4, 3, dtype=torch.float64).eval()
    conv.bias.requires_grad_(False)
    conv.note, conv.kind, conv.dims, conv.shape_of = "mine", "theirs", 7, (1, 2)
    calls = []
    conv.register_forward_hook(lambda *_: calls.append("forward"))
    conv.register_forward_pre_hook(lambda *_: calls.append("before"))
    conv.register_full_backward_hook(lambda *_: calls.append("backward"))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    conv(x).sum().backward()
    layer = SparseConv2d.from_conv(conv, 0.5)
    assert layer.bias is conv.bias
    assert not layer.training
    assert (layer.note, layer.kind, layer.dims) == ("mine", "theirs", 7)
    assert layer.values.dtype == torch.float64
    assert torch.equal(layer.values.grad, conv.weight.grad.flatten()[layer.flat()])
    calls.clear()
    layer(x).sum().backward()
    assert calls == ["before", "forward", "backward"]
    calls.clear()
    back = layer.to_conv()
    assert type(back) is nn.Conv2d
    assert back.note == "mine"
    assert not back.bias.requires_grad
    back(x).sum().backward()
    assert calls == ["before", "forward", "backward"]
    frozen = SparseConv2d.from_conv(nn.Conv2d(3, 4, 3).requires_grad_(False), 0.5)
    assert not frozen.values.requires_grad
    assert not frozen.to_conv().weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_to_the_dense_one(kind):
    layer = KINDS[kind](4, 6, 3, 0.4, padding="same", groups=2, padding_mode="replicate")
    conv = layer.to_conv()
    assert type(conv) is kind
    assert [getattr(conv, name) for name in ATTRIBUTES] == [getattr(layer, name) for name in ATTRIBUTES]
    x = torch.randn(2, 4, *[5] * len(layer.kernel_size))
    torch.testing.assert_close(conv(x), layer(x))
    again = KINDS[kind].from_conv(conv, start="nonzero")
    assert torch.equal(again.flat(), layer.flat())
    assert torch.equal(again.values, layer.values)
    model = nn.Sequential(layer)
    assert list(densify(model).state_dict()) == ["0.weight", "0.bias"]
    assert layer.training
    assert conv.weight.data_ptr() != layer.values.data_ptr()


def test_the_weight_is_a_sparse_matrix_attached_to_autograd():
    layer = SparseConv2d(4, 6, 3, 0.3)
    assert layer.weight.sizes() == [6, 36]
    layer.weight.to_dense().sum().backward()
    assert torch.equal(layer.values.grad, torch.ones(layer.nnz))
    assert torch.equal(to_csr(layer).to_dense(), layer.to_dense())
    assert (to_scipy(layer).toarray() == layer.to_dense().detach().numpy()).all()


def test_the_state_dict_carries_values_and_topology_only():
    assert list(SparseConv2d(4, 6, 3, 0.3).state_dict()) == ["values", "bias", "crow", "col"]


@pytest.mark.parametrize("density", [0.3, 0.1, 0.5])  # the same nnz, less, more
def test_a_sparse_checkpoint_of_another_topology_loads(density):
    source, target = SparseConv2d(4, 6, 3, density), SparseConv2d(4, 6, 3, 0.3)
    values, buffer = target.values, io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert target.values is values
    x = torch.randn(3, 4, 5, 6)
    assert torch.equal(target(x), source(x))
    target(x).sum().backward()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_dense_checkpoint_loads_at_the_layers_topology(form):
    layer, conv = SparseConv2d(4, 6, 3, 0.3), nn.Conv2d(4, 6, 3).to(memory_format=form)
    flat = layer.flat().clone()
    with pytest.warns(UserWarning, match="magnitude was left out"):
        layer.load_state_dict(conv.state_dict())
    assert torch.equal(layer.flat(), flat)
    assert torch.equal(layer.values, conv.weight.flatten()[flat])
    assert torch.equal(layer.bias, conv.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "col": s["col"] + 100}, r"col must be in \[0, 36\)"),
        (lambda s: {**s, "crow": s["crow"][:-1]}, "crow must have .* 7"),
        (lambda s: {**s, "values": s["values"][:-1]}, "col must have one entry for each"),
        (lambda s: {"weight": torch.randn(6, 36), "bias": s["bias"]}, r"weight must be \(6, 4, 3, 3\), got \(6, 36\)"),
        (lambda s: {"weight": torch.randn(6, 4, 3, 4), "bias": s["bias"]}, r"weight must be \(6, 4, 3, 3\), got"),
        (lambda s: {"weight": torch.randn(6, 4, 3, 3).to_sparse(), "bias": s["bias"]}, "weight must"),
        (lambda s: {**s, "extra": torch.randn(1)}, "Unexpected key.*extra"),
    ],
)
def test_a_corrupt_checkpoint_is_refused_and_the_layer_left_as_it_was(change, message):
    layer, x = SparseConv2d(4, 6, 3, 0.3), torch.randn(3, 4, 5, 6)
    before, expected = copy.deepcopy(layer.state_dict()), layer(x)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(change(copy.deepcopy(before)))
    for key, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert torch.equal(layer(x), expected)


def saved_whole(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_whole])
@pytest.mark.parametrize("mode", MODES)
def test_copies_work_on_their_own(mode, duplicate):
    layer, x = SparseConv2d(4, 6, 3, 0.3, padding=1, padding_mode=mode), torch.randn(3, 4, 5, 6)
    other = duplicate(layer)
    assert torch.equal(layer(x), other(x))
    assert repr(layer) == repr(other)
    with torch.no_grad():
        other.values.zero_()
    assert not torch.equal(layer(x), other(x))


def test_the_topology_can_be_replaced_and_drawn_anew():
    layer, x = SparseConv2d(4, 6, 3, 0.3), torch.randn(3, 4, 5, 6)
    other = SparseConv2d(4, 6, 3, 0.3)
    layer.set_topology(other.flat(), other.values.detach())
    layer.bias.data.copy_(other.bias)
    assert torch.equal(layer(x), other(x))
    flat = layer.flat()
    layer.reset_parameters()
    assert not torch.equal(layer.flat(), flat)
    assert (layer.nnz, layer.values.grad) == (other.nnz, None)
    torch.testing.assert_close(layer(x), layer.to_conv()(x))
    with pytest.raises(ValueError, match="indices must be a topology"):
        layer.set_topology(torch.tensor([0, 6 * 36]), torch.zeros(2))


def test_indices_that_something_else_writes_are_checked_before_they_are_used():
    layer, other = SparseConv2d(4, 6, 3, 0.3), SparseConv2d(4, 6, 3, 0.3)
    x = torch.randn(4, 4, 5, 6)
    for mine, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    torch.testing.assert_close(layer(x), layer.to_conv()(x))
    layer.csc_order.zero_()  # what follows from others is made anew
    layer(x).sum().backward()
    assert torch.equal(layer.csc_order, other.csc_order)
    layer.col.fill_(35)
    with pytest.raises(ValueError, match="indices must be a topology, got what something else"):
        layer(x)


def test_in_inference_mode_without_gradients_and_on_the_meta_device():
    x = torch.randn(4, 4, 5, 6)
    with torch.inference_mode():
        layer = SparseConv2d(4, 6, 3, 0.3)
        torch.testing.assert_close(layer(x), layer.to_conv()(x))
    layer = SparseConv2d(4, 6, 3, 0.3, padding=1, padding_mode="circular")
    with torch.no_grad():
        assert not layer(x).requires_grad
    moved = layer.to("meta")
    out = moved(x.to("meta"))
    assert out.shape == (4, 6, 5, 6)
    assert out.is_meta
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert layer.to_empty(device="cpu")(torch.randn(4, 4, 5, 6)).shape == (4, 6, 5, 6)


def test_recomputed_in_the_backward_pass_as_without():
    conv, layer = sparse(nn.Conv2d(4, 6, 3, dtype=torch.float64))
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    conv(x.detach()).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, conv.weight.grad.flatten()[layer.flat()])


def test_used_twice_in_one_pass_gradients_add_up():
    conv, layer = sparse(nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64))
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for each in conv, layer:
        each(each(x).tanh()).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, conv.weight.grad.flatten()[layer.flat()])
    torch.testing.assert_close(layer.bias.grad, conv.bias.grad)


def test_a_convolution_far_beyond_what_could_be_dense():
    layer = SparseConv2d(100_000, 50_000, 3, 1e-6, padding=1)  # 4.5e10 places
    assert layer.nnz == 45_000
    x = torch.randn(2, 100_000, 2, 3, requires_grad=True)
    out = layer(x)
    of_x, of_values = torch.autograd.grad(out.square().sum(), (x, layer.values))
    assert out.shape == (2, 50_000, 2, 3)
    assert torch.isfinite(of_x).all()
    assert torch.isfinite(of_values).all()
