"""Convolutions by every kernel, against PyTorch's of a dense weight."""

import copy
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, hessian, jvp, vjp, vmap

from sparsify import SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src import kernels, topology
from sparsify._src.kernels.window import Window, dense_gradient
from sparsify._src.native import library
from tests.support.convolutions import Case, by_dense, cases
from tests.support.marks import EACH, TORCHS_OWN, needs_native

pytestmark = TORCHS_OWN

LEVELS = range(kernels.native.LEVEL + 1)
CLOSE = {torch.float32: {"rtol": 1e-3, "atol": 1e-3}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}
DIFFERENT = [EACH[0], "aten"]  # torch_sparse's convolutions are aten's
WAYS = list(itertools.product([False, True], repeat=3))[1:]


def with_threads(threads, run):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def output_and_gradients(function, operands, grad, wanted=(True, True, True)):
    """What `function` gives and the gradients of those operands that are wanted, None for the others."""
    leaves = [None if x is None else x.detach().requires_grad_(want) for x, want in zip(operands, wanted, strict=True)]
    output = function(*leaves)
    asked = [x for x in leaves if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(output, asked, grad) if asked else ())
    return [output.detach(), *(next(found) if x is not None and x.requires_grad else None for x in leaves)]


def as_function(layer):
    def function(input, values, bias=None):
        given = {"values": values} if bias is None else {"values": values, "bias": bias}
        return functional_call(layer, given, (input,))

    return function


def check_against_dense(case, dtype, wanted=(True, True, True)):
    layer, x = case.layer(dtype), case.input(dtype)
    operands = x, layer.values, layer.bias
    with torch.no_grad():
        grad = torch.randn_like(layer(x))
    found = output_and_gradients(as_function(layer), operands, grad, wanted)
    wide = [None if each is None else each.double() for each in operands]
    expected = output_and_gradients(by_dense(layer), wide, grad.double(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.double(), other, **CLOSE[dtype])


@needs_native
@settings(deadline=None, max_examples=60)
@given(
    case=cases(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    index=st.sampled_from([torch.int32, torch.int64]),
    level=st.sampled_from(LEVELS),
    threads=st.integers(1, 5),
    wanted=st.sampled_from(WAYS),
)
def test_products_and_gradients_are_those_of_the_dense_weight(case, dtype, index, level, threads, wanted):
    with pytest.MonkeyPatch.context() as patch, kernels.use("native"):
        patch.setattr(kernels.native, "LEVEL", level)
        patch.setattr(library, "ENOUGH", 0)
        patch.setattr(topology, "index_dtype", lambda nnz, shape: index)
        with_threads(threads, lambda: check_against_dense(case, dtype, wanted))


@pytest.mark.parametrize("name", EACH)
def test_by_every_kernel(name):
    @settings(deadline=None, max_examples=25)
    @given(case=cases(), dtype=st.sampled_from([torch.float32, torch.float64]))
    def check(case, dtype):
        with kernels.use(name):
            check_against_dense(case, dtype)

    check()


@needs_native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 4, 5, 8, 9, 15, 16, 17, 33])
def test_images_in_every_number_whose_rows_are_longer_than_vectors(batch, dtype, level, monkeypatch):
    monkeypatch.setattr(kernels.native, "LEVEL", level)
    for case in (
        Case(2, (5, 7), (3, 3), 0.3, (1, 1), (1, 1), (1, 1), 1, True, (19, 37), batch),
        Case(2, (4, 6), (5, 5), 0.3, (2, 2), (2, 2), (1, 1), 2, True, (17, 23), batch),
        Case(1, (3, 4), (7,), 0.5, (3,), (3,), (2,), 1, False, (131,), batch),
    ):
        check_against_dense(case, dtype)


POINTWISE = {"as they are": 0.05, "packed": 1.0}
"""How images are computed with by windows of one tap, as a rule, at a density."""


@needs_native
@pytest.mark.parametrize("density", POINTWISE.values(), ids=POINTWISE)
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(1, 3), (2, 4), (4, 4), (1, 17), (7, 7), (8, 8), (1, 113), (14, 14), (16, 24)])
def test_windows_of_one_tap_over_images_of_every_size(size, level, dtype, density, monkeypatch):
    monkeypatch.setattr(kernels.native, "LEVEL", level)
    monkeypatch.setattr(library, "ENOUGH", 0)
    for groups, batch, threads in (1, 1, 1), (1, 17, 2), (2, 18, 3), (3, 21, 2):
        channels = 4 * groups, 5 * groups
        case = Case(2, channels, (1, 1), density, (1, 1), (0, 0), (1, 1), groups, True, size, batch)
        for wanted in (True, True, True), (True, False, True), (False, True, False):
            with_threads(threads, lambda: check_against_dense(case, dtype, wanted))  # noqa: B023


@needs_native
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize(("size", "stride"), [((5, 40), (5, 1)), ((5, 40), (1, 40)), ((7, 64), (3, 64))])
def test_windows_of_one_tap_that_skip_pixels(size, stride, batch):
    check_against_dense(Case(2, (4, 5), (1, 1), 0.3, stride, (0, 0), (1, 1), 1, True, size, batch), torch.float32)


ONE_TAP = Case(2, (20, 30), (1, 1), 0.1, (1, 1), (0, 0), (1, 1), 2, True, (7, 9), 18)


@needs_native
@settings(deadline=None, max_examples=20)
@given(case=cases(batches=st.integers(1, 40)), level=st.sampled_from(LEVELS))
@example(case=ONE_TAP, level=LEVELS[-1])
@example(case=ONE_TAP._replace(stride=(2, 1), size=(15, 9)), level=LEVELS[-1])
def test_results_do_not_depend_on_the_number_of_threads(case, level):
    layer, x = case.layer(torch.float32), case.input(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.native, "LEVEL", level)
        patch.setattr(library, "ENOUGH", 0)
        with torch.no_grad():
            grad = torch.randn_like(layer(x))

        def run():
            return output_and_gradients(as_function(layer), (x, layer.values, layer.bias), grad)

        expected = with_threads(1, run)
        for threads in 1, 2, 3, 5:
            for one, other in zip(with_threads(threads, run), expected, strict=True):
                assert one is None or torch.equal(one, other)


def hub(outs, channels, taps):
    """A matrix with a full row, a full column, and little else: rows and columns without a connection."""
    dense = torch.zeros(outs, channels * taps, dtype=torch.float64)
    dense[outs // 2], dense[:, channels * taps // 3] = 1.0, 2.0
    return dense


@pytest.mark.parametrize("name", EACH)
def test_full_rows_and_columns_and_empty_ones(name, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    conv = torch.nn.Conv2d(6, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(hub(9, 6, 9).view_as(conv.weight))
    layer = SparseConv2d.from_conv(conv, start="nonzero")
    x = torch.randn(5, 6, 7, 8, dtype=torch.float64)
    grad = torch.randn(5, 9, 5, 6, dtype=torch.float64)
    with kernels.use(name):
        for threads in 1, 4:
            operands = x, layer.values, layer.bias
            found = with_threads(threads, lambda: output_and_gradients(as_function(layer), operands, grad))  # noqa: B023
            for one, other in zip(found, output_and_gradients(by_dense(layer), operands, grad), strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", EACH)
def test_infinities_and_nans_of_the_input_stay_where_they_belong(name):
    layer = SparseConv2d(3, 4, 3, 0.2, padding=1, bias=False)
    for batch in 2, 17:
        x = torch.randn(batch, 3, 6, 7)
        x[0, 1, 2, 3], x[-1, 0, 5, 6] = torch.inf, torch.nan
        touched = torch.zeros_like(x)
        touched[0, 1, 2, 3] = touched[-1, 0, 5, 6] = 1
        with kernels.use(name):
            out = layer(x)
        reached = by_dense(layer)(touched, torch.ones_like(layer.values)) > 0
        if name == "native":  # PyTorch's own multiplies by the zeros between the connections
            assert torch.equal(~torch.isfinite(out), reached)
        assert not torch.isfinite(out[reached]).any()


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("wanted", WAYS)
@pytest.mark.parametrize("bias", [True, False])
def test_first_and_second_derivatives_are_right(wanted, bias, name):
    if not bias and not any(wanted[:2]):
        pytest.skip("nothing to differentiate")
    layer = SparseConv2d(2, 2, (2, 3), 0.4, (1, 2), (1, 0), (2, 1), 2, bias, dtype=torch.float64)
    given_to = [torch.randn(2, 2, 3, 4, dtype=torch.float64), layer.values.detach().clone()]
    given_to += [layer.bias.detach().clone()] if bias else []
    given_to = [x.requires_grad_(want) for x, want in zip(given_to, wanted, strict=False)]
    with kernels.use(name):
        assert gradcheck(as_function(layer), given_to)
        assert gradgradcheck(as_function(layer), given_to)


@settings(deadline=None, max_examples=15)
@given(case=cases(most=2, batches=st.integers(0, 2)), wanted=st.sampled_from(WAYS[1:]))
def test_derivatives_of_any_shape(case, wanted):
    layer = case._replace(density=0.1).layer()
    operands = [case.input(), layer.values.detach().clone()]
    operands += [layer.bias.detach().clone()] if case.bias else []
    operands = [x.requires_grad_(want) for x, want in zip(operands, wanted, strict=False)]
    if any(x.requires_grad for x in operands):
        assert gradcheck(as_function(layer), operands, fast_mode=True)
        assert gradgradcheck(as_function(layer), operands, fast_mode=True)


@pytest.mark.parametrize("wanted", WAYS)
def test_torch_func_and_forward_mode_are_those_of_the_dense_function(wanted):
    layer = SparseConv1d(4, 6, 3, 0.3, 2, 1, groups=2, dtype=torch.float64)
    operands = torch.randn(3, 4, 7, dtype=torch.float64), layer.values.detach().clone(), layer.bias.detach().clone()

    def chosen(function):
        def call(*moved):
            rest = iter(moved)
            return function(*(next(rest) if want else fixed for fixed, want in zip(operands, wanted, strict=True)))

        return call

    moved = tuple(x for x, want in zip(operands, wanted, strict=True) if want)
    sparse, dense = chosen(as_function(layer)), chosen(by_dense(layer))
    tangents = tuple(torch.randn_like(x) for x in moved)
    torch.testing.assert_close(jvp(sparse, moved, tangents), jvp(dense, moved, tangents))
    cotangent = torch.randn(3, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(vjp(sparse, *moved)[1](cotangent), vjp(dense, *moved)[1](cotangent))

    def gradient(function):
        return lambda *moved: vjp(lambda *x: function(*x).square().sum(), *moved)[1](cotangent.new_ones(()))

    torch.testing.assert_close(jvp(gradient(sparse), moved, tangents), jvp(gradient(dense), moved, tangents))


def test_forward_mode_through_dual_inputs_and_hessians():
    layer = SparseConv2d(2, 3, 2, 0.5, dtype=torch.float64)
    x, tangent = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64)
    for mode in torch.enable_grad, torch.no_grad:
        with mode(), forward_ad.dual_level():
            found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
            torch.testing.assert_close(found, layer(tangent) - layer(torch.zeros_like(tangent)))

    def loss(function):
        return lambda values: function(x, values, layer.bias.detach()).pow(3).sum()

    values = layer.values.detach()
    expected = torch.autograd.functional.hessian(loss(by_dense(layer)), values)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss(as_function(layer)), values), expected)
    with pytest.raises(NotImplementedError, match=r"got one of torch\.vmap"):
        hessian(loss(as_function(layer)))(values)
    with pytest.raises(NotImplementedError, match=r"got one of torch\.vmap"):
        vmap(layer)(torch.randn(3, 2, 2, 4, 5, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch 2.15's own
@pytest.mark.parametrize("name", DIFFERENT)
def test_the_operators_are_well_formed(name):
    layer, x = SparseConv2d(4, 6, 3, 0.2, 2, 1, 1, 2), torch.randn(3, 4, 7, 8, requires_grad=True)
    index, window = tuple(layer.indices()), layer.window.numbers
    grad = torch.randn(3, 6, 4, 4)
    with kernels.use(name):
        torch.library.opcheck(torch.ops.sparsify.convolution, (x, layer.values, layer.bias, *index, window))
        given_to = grad, x.detach(), layer.values.detach(), *index, [True, True, True], window
        torch.library.opcheck(torch.ops.sparsify.convolution_backward, given_to)


HOSTILE = {
    "index beyond": (lambda layer: layer.col.data.__setitem__(3, 10**6), "forward"),
    "index below": (lambda layer: layer.col.data.__setitem__(3, -1), "forward"),
    "unsorted": (lambda layer: layer.col.data.copy_(layer.col.flip(0)), "forward"),
    "rows beyond": (lambda layer: layer.crow.data.__setitem__(2, 10**6), "forward"),
    "rows below": (lambda layer: layer.crow.data.__setitem__(2, -5), "forward"),
    "first row": (lambda layer: layer.crow.data.__setitem__(0, 1), "forward"),
    "last row": (lambda layer: layer.crow.data.__setitem__(-1, 1), "forward"),
    "row beyond": (lambda layer: layer.csc_row.data.__setitem__(3, 10**6), "backward"),
    "row below": (lambda layer: layer.csc_row.data.__setitem__(-1, -1), "backward"),
    "order beyond": (lambda layer: layer.csc_order.data.__setitem__(3, 10**6), "backward"),
    "order below": (lambda layer: layer.csc_order.data.__setitem__(3, -1), "backward"),
    "columns beyond": (lambda layer: layer.ccol.data.__setitem__(5, 10**6), "backward"),
    "columns below": (lambda layer: layer.ccol.data.__setitem__(5, -5), "backward"),
    "first column": (lambda layer: layer.ccol.data.__setitem__(0, 1), "backward"),
    "last column": (lambda layer: layer.ccol.data.__setitem__(-1, 10**6), "backward"),
}


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("what", HOSTILE)
def test_indices_that_lead_outside_are_refused(what, batch, threads, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    spoil, when = HOSTILE[what]
    layer, x = SparseConv2d(4, 6, 3, 0.5, 2, 1), torch.randn(batch, 4, 7, 8, requires_grad=True)
    out = layer(x)
    spoil(layer)  # through `data`, which no counter of writes sees
    with pytest.raises(ValueError, match="indices must be a topology"):
        with_threads(threads, lambda: layer(x) if when == "forward" else out.sum().backward())


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("number", [-(2**31), 2**31 - 1])
def test_starts_that_lead_outside_are_refused_wherever_they_are(number, threads, monkeypatch):
    monkeypatch.setattr(library, "ENOUGH", 0)
    layer, x = SparseConv2d(4, 12, 3, 0.5), torch.randn(3, 4, 5, 6, requires_grad=True)
    out = layer(x)
    for starts, run in (layer.crow, lambda: layer(x)), (layer.ccol, lambda: out.sum().backward(retain_graph=True)):
        for place in range(len(starts)):
            before = int(starts[place])
            starts.data[place] = number
            with pytest.raises(ValueError, match="indices must be a topology"):
                with_threads(threads, run)
            starts.data[place] = before
    layer(x).sum().backward()


@needs_native
@settings(deadline=None, max_examples=60)
@given(
    case=cases(most=3, batches=st.integers(1, 20)),
    field=st.sampled_from(["crow", "col", "ccol", "csc_row", "csc_order"]),
    place=st.integers(0, 10**6),
    number=st.one_of(st.integers(-3, 40), st.sampled_from([2**31 - 1, -(2**31)])),
    threads=st.integers(1, 4),
)
def test_no_index_whatever_it_is_ends_the_process(case, field, place, number, threads):
    layer, x = case.layer(), case.input().requires_grad_()
    out = layer(x)
    index = getattr(layer, field).data
    index[place % len(index)] = number
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "ENOUGH", 0)
        for run in (lambda: layer(x), lambda: out.sum().backward()):
            try:
                with_threads(threads, run)
            except ValueError as error:
                assert "indices must be a topology" in str(error)  # noqa: PT017


def operands(layer, x):
    return x, layer.values.detach(), layer.bias.detach(), *layer.indices()


BAD_WINDOWS = [
    [],
    [1],
    [1, 3, 3, 1, 1, 0, 0, 1],
    [1] * 17,
    [0, 3, 3, 1, 1, 0, 0, 1, 1],
    [-1, 3, 3, 1, 1, 0, 0, 1, 1],
    [5, 3, 3, 1, 1, 0, 0, 1, 1],
    [2, 3, 3, 1, 1, 0, 0, 1, 1],
    [1, 0, 3, 1, 1, 0, 0, 1, 1],
    [1, -3, -3, 1, 1, 0, 0, 1, 1],
    [1, 3, 3, 0, 1, 0, 0, 1, 1],
    [1, 3, 3, 1, -1, 0, 0, 1, 1],
    [1, 3, 3, 1, 1, -1, 0, 1, 1],
    [1, 3, 3, 1, 1, 0, 0, 0, 1],
    [1, 3, 3, 1, 1, 0, 0, 1, -1],
    [1, 3, 3, 1, 1, 0, 0, 9, 9],
    [1, 9, 9, 1, 1, 0, 0, 1, 1],
    [1, 4, 2, 1, 1, 0, 0, 1, 1],
    [1, 3, 3, 2**40, 2**40, 2**40, 2**40, 1, 1],
    [1, 3, 3, 2**40, 2**40, 2**40, 2**40, 2**39, 2**39],
    [1, 3, 3, 2**62, 2**62, 2**62, 2**62, 1, 1],
    [1, 3, 3, 2**20, 2**20, 2**20, 2**20, 1, 1],
    [1, 2**40, 2**40, 1, 1, 0, 0, 1, 1],
    [3, 3, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1],
]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("numbers", BAD_WINDOWS, ids=str)
def test_windows_from_a_hostile_graph_are_refused(numbers, name):
    layer = SparseConv2d(4, 6, 3, 0.5)
    x, grad = torch.randn(2, 4, 7, 8), torch.randn(2, 6, 5, 6)
    given_to = operands(layer, x)
    with kernels.use(name):
        try:
            out = torch.ops.sparsify.convolution(*given_to, numbers)
        except (ValueError, RuntimeError, MemoryError):
            pass
        else:  # PyTorch's own kernels know how to move so far
            assert name != "native", out.shape
        back = grad, x, layer.values.detach(), *layer.indices(), [True] * 3, numbers
        with pytest.raises((ValueError, RuntimeError, MemoryError)):
            torch.ops.sparsify.convolution_backward(*back)


@needs_native
@settings(deadline=None, max_examples=200)
@given(
    numbers=st.lists(
        st.one_of(st.integers(-2, 9), st.sampled_from([2**15, 2**31, 2**40, 2**63 - 1])), min_size=9, max_size=9
    ),
    outs=st.sampled_from([0, 6]),
)
@example(numbers=[1, 3, 3, 2**40, 2**40, 2**40, 2**40, 1, 1], outs=0)
def test_no_window_whatever_its_numbers_ends_the_process(numbers, outs):
    x, values, empty = torch.randn(2, 4, 7, 8), torch.randn(outs * 36), torch.zeros(0, dtype=torch.int32)
    index = topology.Indices(empty.new_zeros(1), empty, empty.new_zeros(37), empty, empty)
    if outs:
        index = topology.index(torch.arange(outs * 36), (outs, 36))
    with kernels.use("native"):
        try:
            out = torch.ops.sparsify.convolution(x, values, None, *index, numbers)
            given_to = torch.ones_like(out), x, values, *index, [True] * 3, numbers
            found, *_ = torch.ops.sparsify.convolution_backward(*given_to)
        except (ValueError, RuntimeError, MemoryError):
            return
        assert out.shape[:2] == (2, outs)
        assert found.shape == x.shape


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"input": torch.randn(2, 4, 7)}, ValueError),
        ({"input": torch.randn(2, 5, 7, 8)}, ValueError),
        ({"input": torch.randn(2, 4, 2, 8)}, ValueError),
        ({"input": torch.randn(2, 4, 7, 8).double()}, TypeError),
        ({"input": torch.randn(2, 4, 7, 8).to_sparse()}, TypeError),
        ({"values": torch.randn(5)}, ValueError),
        ({"values": torch.randn(108).half()}, TypeError),
        ({"bias": torch.randn(5)}, ValueError),
        ({"grad": torch.randn(2, 6, 5, 5)}, ValueError),
        ({"grad": torch.randn(1, 6, 5, 6)}, ValueError),
        ({"col": torch.zeros(3, dtype=torch.int32)}, ValueError),
        ({"crow": torch.zeros(6, dtype=torch.int32)}, (ValueError, TypeError)),
        ({"col": torch.zeros(108, dtype=torch.float32)}, TypeError),
    ],
)
def test_operands_of_an_operator_that_do_not_fit_are_refused(change, error, name):
    layer = SparseConv2d(4, 6, 3, 0.5)
    good = {"input": torch.randn(2, 4, 7, 8), "values": layer.values.detach(), "bias": layer.bias.detach()}
    good |= layer.indices()._asdict() | {"grad": torch.randn(2, 6, 5, 6)}
    bad = good | change
    index = [bad[part] for part in topology.Indices._fields]
    numbers = layer.window.numbers
    with kernels.use(name):
        if "grad" not in change:
            with pytest.raises(error):
                torch.ops.sparsify.convolution(bad["input"], bad["values"], bad["bias"], *index, numbers)
        if "bias" not in change:
            with pytest.raises(error):
                torch.ops.sparsify.convolution_backward(
                    bad["grad"], bad["input"], bad["values"], *index, [True] * 3, numbers
                )


@settings(deadline=None, max_examples=40)
@given(case=cases(most=4, batches=st.integers(1, 6)), data=st.data())
def test_rows_of_the_dense_gradient_are_those_of_the_dense_weight(case, data):
    layer, x = case.layer(), case.input()
    weight = layer.to_dense().detach().view(layer.weight_shape).requires_grad_()
    rest = layer.stride, layer.padding, layer.dilation, layer.groups
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[case.dims]
    out = function(x, weight, None, *rest)
    grad = torch.randn_like(out)
    [expected] = torch.autograd.grad(out, weight, grad)
    first = data.draw(st.integers(0, case.channels[1] - 1))
    last = data.draw(st.integers(first + 1, case.channels[1]))
    found = dense_gradient(grad, x, layer.window, slice(first, last))
    torch.testing.assert_close(found, expected.flatten(1)[first:last])
    flat = torch.arange(first * layer.in_features, last * layer.in_features)
    at = kernels.gradient_of_values(grad, x, topology.index(flat, layer.shape), layer.window)
    torch.testing.assert_close(at, expected.flatten()[flat])


def test_a_window_tells_sizes_and_its_own_numbers():
    window = Window((3, 2), (2, 1), (1, 0), (1, 3), 2)
    assert Window.of(window.numbers) == window
    assert (window.taps, window.extent, window.in_channels(12), window.out_size((7, 9))) == (6, (3, 4), 4, (4, 6))
    for dims, layer in (1, SparseConv1d(2, 3, 2, 1.0)), (3, SparseConv3d(2, 3, 2, 1.0)):
        assert Window.of(layer.window.numbers) == layer.window
        assert len(layer.window.kernel_size) == dims


@needs_native
def test_more_places_than_can_be_counted_are_refused():
    layer = SparseConv3d(1, 1, 1, 1.0, stride=1000, padding=1000)
    with pytest.raises(ValueError, match="input must be smaller with its padding"):
        layer(torch.randn(1, 1, 2, 2, 2))


def test_copies_of_a_convolution_compute_the_same():
    layer, x = SparseConv2d(4, 6, 3, 0.5), torch.randn(2, 4, 7, 8)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("name", EACH)
def test_every_kernel_computes_and_differentiates_within_autocast(name):
    layer, x = SparseConv2d(4, 6, 3, 0.4), torch.randn(2, 4, 8, 8, requires_grad=True)
    with kernels.use(name):
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert layer.values.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), exact, atol=0.1, rtol=0.05)
