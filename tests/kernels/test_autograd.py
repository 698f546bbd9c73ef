"""Derivatives of any order and in both directions, against the same function of a dense weight."""

import itertools

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from sparsify import SparseLinear, sparsify
from sparsify._src import kernels
from tests.support.marks import TORCHS_OWN
from tests.support.models import mlp

pytestmark = TORCHS_OWN

WAYS = list(itertools.product([False, True], repeat=3))[1:]


def make(bias=True, ins=5, outs=4, density=0.4):
    return SparseLinear(ins, outs, density, bias=bias, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def product(layer):
    """The layer as a function of input, values and bias."""

    def function(input, values, bias=None):
        parameters = {"values": values} if bias is None else {"values": values, "bias": bias}
        return functional_call(layer, parameters, (input,))

    return function


def dense(layer):
    """The same of a dense weight."""
    flat, shape = layer.flat(), layer.shape

    def function(input, values, bias=None):
        weight = values.new_zeros(shape[0] * shape[1]).index_put((flat,), values).view(shape)
        return F.linear(input, weight, bias)

    return function


def arguments(layer, wanted, shape=(3, 5)):
    given = [torch.randn(shape, dtype=torch.float64), layer.values.detach().clone()]
    given += [] if layer.bias is None else [layer.bias.detach().clone()]
    return [x.requires_grad_(want) for x, want in zip(given, wanted, strict=False)]


@pytest.mark.parametrize("name", kernels.available())
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wanted", WAYS)
def test_first_and_second_derivatives_are_right(wanted, bias, name):
    if not bias and not any(wanted[:2]):
        pytest.skip("nothing to differentiate")
    layer = make(bias)
    with kernels.use(name):
        given = arguments(layer, wanted)
        assert gradcheck(product(layer), given)
        assert gradgradcheck(product(layer), given)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (2, 3, 5), (5,)])
def test_of_batches_of_every_shape(shape):
    layer = make()
    given = arguments(layer, (True, True, True), shape)
    if 0 in shape:
        out = product(layer)(*given)
        first = torch.autograd.grad(out.sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(x.sum() for x in first), given, allow_unused=True, materialize_grads=True)
        assert all(not x.any() for x in second)
    else:
        assert gradgradcheck(product(layer), given)


def test_of_every_order():
    layer, orders = make(), {}
    for function in product(layer), dense(layer):
        torch.manual_seed(0)
        given = arguments(layer, (True, True, True))
        value = (function(*given).tanh() ** 3).sum()
        for order in range(4):
            parts = torch.autograd.grad(value, given, create_graph=True)
            value = sum((part**2).sum() for part in parts)
            orders.setdefault(order, []).append(value.detach())
    for one, other in orders.values():
        torch.testing.assert_close(one, other)


def twins(density=0.4):
    """A sparse network, and the dense one of its weights."""
    sparse, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, density)
    twin = mlp(12, 16, 4, dtype=torch.float64)
    for i in (0, 2):
        twin[i].weight.data.copy_(sparse[i].to_dense())
        twin[i].bias.data.copy_(sparse[i].bias.data)
    return sparse, twin


def same_gradients(sparse, twin):
    for i in (0, 2):
        torch.testing.assert_close(sparse[i].values.grad, twin[i].weight.grad.flatten()[sparse[i].flat()])
        torch.testing.assert_close(sparse[i].bias.grad, twin[i].bias.grad)


def gradient_penalty(model, x):
    x = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (model(x).mean() + 10 * (of_x.norm(dim=1) - 1).square().mean()).backward()


def r1(model, x):
    x = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (F.softplus(model(x)).mean() + of_x.square().sum()).backward()


def inner_loop(model, x):
    """MAML: two steps of fast weights, through which the outer loss is differentiated."""
    fast = dict(model.named_parameters())
    for _ in range(2):
        loss = functional_call(model, fast, (x,)).square().mean()
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    functional_call(model, fast, (x + 1,)).square().mean().backward()


def norm_of_the_gradient(model, x):
    values = [p for p in model.parameters() if p.dim() == 1]
    grads = torch.autograd.grad(model(x).square().mean(), values[-1:], create_graph=True)
    sum(g.square().sum() for g in grads).backward()


@pytest.mark.parametrize("loss", [gradient_penalty, r1, norm_of_the_gradient])
def test_losses_of_gradients_train_as_in_a_dense_network(loss):
    sparse, twin = twins()
    x = torch.randn(6, 12, dtype=torch.float64)
    loss(sparse, x)
    loss(twin, x)
    same_gradients(sparse, twin)


def test_an_inner_loop_is_differentiated_as_in_a_network_whose_inactive_weights_stay_zero():
    sparse, twin = twins()
    x = torch.randn(6, 12, dtype=torch.float64)
    inner_loop(sparse, x)
    active = {f"{i}.weight": twin[i].weight.ne(0) for i in (0, 2)}

    def masked(parameters):
        return {name: p * active.get(name, 1) for name, p in parameters.items()}

    fast = dict(twin.named_parameters())
    for _ in range(2):
        loss = functional_call(twin, masked(fast), (x,)).square().mean()
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    functional_call(twin, masked(fast), (x + 1,)).square().mean().backward()
    same_gradients(sparse, twin)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True will create a reference cycle")
def test_the_gradient_of_all_parameters_may_be_differentiated_again():
    sparse, twin = twins()
    x = torch.randn(6, 12, dtype=torch.float64)
    places = {i: sparse[i].flat() for i in (0, 2)}
    ways = {i: torch.randn_like(sparse[i].values) for i in (0, 2)}
    found = []
    for model in sparse, twin:
        model(x).square().mean().backward(create_graph=True)
        weights = [model[i].values if model is sparse else model[i].weight for i in (0, 2)]
        along = list(ways.values())
        if model is twin:
            along = [
                torch.zeros(w.numel(), dtype=w.dtype).index_put((places[i],), ways[i]).view_as(w)
                for i, w in zip((0, 2), weights, strict=True)
            ]
        found.append(torch.autograd.grad([w.grad for w in weights], weights, along))
    for i, one, other in zip((0, 2), *found, strict=True):
        torch.testing.assert_close(one, other.flatten()[places[i]])


def test_under_autocast():
    layer = SparseLinear(8, 6, 0.5)
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    (of_x,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
    of_x.square().sum().backward()
    weight = layer.to_dense().detach().requires_grad_()
    z = x.detach().requires_grad_()
    (of_z,) = torch.autograd.grad(F.linear(z, weight, layer.bias).square().sum(), z, create_graph=True)
    of_z.square().sum().backward()
    expected = weight.grad.flatten()[layer.flat()]
    torch.testing.assert_close(layer.values.grad, expected, rtol=0.1, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("wanted", WAYS)
def test_torch_func_differentiates_twice(wanted):
    layer = make()
    given = arguments(layer, (False, False, False))
    chosen = tuple(i for i, want in enumerate(wanted) if want)

    def penalty(function):
        def loss(*args):
            return function(*args).tanh().square().sum()

        def again(*args):
            return sum(part.square().sum() for part in grad(loss, chosen)(*args))

        return grad(again, chosen)

    for one, other in zip(penalty(product(layer))(*given), penalty(dense(layer))(*given), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", WAYS)
def test_forward_over_reverse(wanted):
    layer = make()
    given = arguments(layer, (False, False, False))
    ways = [torch.randn_like(x) if want else torch.zeros_like(x) for x, want in zip(given, wanted, strict=True)]

    def gradients(function):
        return grad(lambda *args: function(*args).tanh().square().sum(), (0, 1, 2))

    for one, other in zip(
        jvp(gradients(product(layer)), tuple(given), tuple(ways)),
        jvp(gradients(dense(layer)), tuple(given), tuple(ways)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("wanted", WAYS)
def test_forward_mode_never_drops_the_tangent(wanted, mode):
    layer = make()
    given = arguments(layer, (False, False, False))
    ways = [torch.randn_like(x) for x in given]
    found = []
    for function in product(layer), dense(layer):
        with mode(), fwAD.dual_level():
            duals = [fwAD.make_dual(x, way) if want else x for x, way, want in zip(given, ways, wanted, strict=True)]
            found.append(fwAD.unpack_dual(function(*duals)))
    torch.testing.assert_close(found[0].primal, found[1].primal)
    assert (found[0].tangent is None) == (found[1].tangent is None)
    if found[1].tangent is not None:
        torch.testing.assert_close(found[0].tangent, found[1].tangent)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_forward_mode_through_parameters_that_are_dual(mode):
    layer = make()
    x, way = torch.randn(3, 5, dtype=torch.float64), torch.randn_like(layer.values)
    with mode(), fwAD.dual_level():
        saved = layer.values
        del layer._parameters["values"]
        layer.values = fwAD.make_dual(saved.detach(), way)
        tangent = fwAD.unpack_dual(layer(x)).tangent
        del layer.values
        layer.values = saved
    torch.testing.assert_close(tangent, dense(layer)(x, way))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's own, of constants in a function
def test_a_linearized_layer():
    layer = make()
    given = arguments(layer, (False, False, False))
    ways = [torch.randn_like(x) for x in given]
    out, push = linearize(product(layer), *given)
    expected, tangent = jvp(dense(layer), tuple(given), tuple(ways))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(push(*ways), tangent)


def test_what_needs_vmap_is_refused_clearly():
    layer = make()
    x = torch.randn(3, 5, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"torch\.vmap"):
        vmap(layer)(x[:, None])
    with pytest.raises(NotImplementedError, match=r"torch\.vmap"):
        hessian(lambda v: functional_call(layer, {"values": v}, (x,)).square().sum())(layer.values.detach())


def test_a_vjp_may_be_taken_twice():
    layer = make()
    given = arguments(layer, (False, False, False))
    cotangent, found = torch.randn(3, 4, dtype=torch.float64), []
    for function in product(layer), dense(layer):

        def pulled(*args, function=function):
            return vjp(function, *args)[1](cotangent)

        found.append(vjp(pulled, *given)[1](tuple(torch.ones_like(x) for x in given)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_of_gradients_of_every_layout():
    layer = make()
    given = arguments(layer, (True, True, True))
    slanted = [torch.randn(5, 3, dtype=torch.float64).t().requires_grad_(), *given[1:]]
    for after in (lambda out: out.t(), lambda out: out.sum(0), lambda out: out.sum(), lambda out: out[:, ::2]):
        assert gradgradcheck(lambda *args, after=after: after(product(layer)(*args)), slanted)
    assert gradgradcheck(lambda x, *args: product(layer)(x[:1].expand(4, 5), *args), given)


@pytest.mark.parametrize("again", [False, True])
def test_a_tangent_that_comes_only_with_the_backward_pass(again):
    layer, found = make(), []
    for function in product(layer), dense(layer):
        torch.manual_seed(0)
        given = arguments(layer, (True, True, True))
        out = function(*given).tanh()
        with fwAD.dual_level():
            cotangent = fwAD.make_dual(torch.ones_like(out), out.detach().sin())
            parts = torch.autograd.grad(out, given, cotangent, create_graph=again)
            found.append([fwAD.unpack_dual(part).tangent for part in parts])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def graphs(model, x):
    yield torch.jit.trace(model, x)
    yield make_fx(model)(x)
    yield torch.export.export(model, (x,)).module()
    yield torch.compile(model, backend="aot_eager")
    indices = model[0].indices()
    yield lambda x: torch.ops.sparsify.linear(x, model[0].values, model[0].bias, *indices)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_graph_refuses_a_tangent_that_it_would_drop(mode, number):
    torch._dynamo.reset()  # PyTorch up to 2.6 counts what it compiled for other cases
    model, x = sparsify(mlp(12, 16, 4), None, 0.4)[0], torch.randn(3, 12)
    graph = list(graphs(model, x))[number]
    with mode(), fwAD.dual_level():
        assert graph(x).shape[0] == 3, "without a tangent it computes"
        with pytest.raises((NotImplementedError, RuntimeError), match=r"tangent|must implement the jvp"):
            graph(fwAD.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("again", [False, True])
def test_many_gradients_at_once(again):
    layer = make()
    weight = layer.to_dense().detach().requires_grad_()
    cotangents, found = torch.randn(7, 3, 4, dtype=torch.float64), []
    for values in layer.values, weight:
        torch.manual_seed(0)
        x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        out = layer(x) if values is layer.values else F.linear(x, weight, layer.bias)
        given = x, values, layer.bias
        found.append(torch.autograd.grad(out, given, cotangents, is_grads_batched=True, create_graph=again))
    expected = found[1][0], found[1][1].flatten(1)[:, layer.flat()], found[1][2]
    for one, other in zip(found[0], expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("vectorize", [False, True])
def test_hessians(vectorize):
    layer = make()
    x, values, bias = arguments(layer, (False, False, False))
    one, other = (
        torch.autograd.functional.hessian(
            lambda v, function=function: function(x, v, bias).tanh().square().sum(), values, vectorize=vectorize
        )
        for function in (product(layer), dense(layer))
    )
    torch.testing.assert_close(one, other)


def heat(model, points):
    """The loss of a physics-informed network: derivatives by the input, up to the second."""
    points = points.clone().requires_grad_()
    u = model(points)
    (first,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), points, create_graph=True)
    (first[:, 1] - second[:, 0] + u.sum(1)).square().mean().backward()


def test_losses_of_second_derivatives_train_as_in_a_dense_network():
    sparse, twin = twins()
    points = torch.randn(6, 12, dtype=torch.float64)
    heat(sparse, points)
    heat(twin, points)
    same_gradients(sparse, twin)


def curvature(forward, weight, active, x):
    """A loss of the third order: of how the gradient of the weight changes with the input."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((forward(x, weight).tanh() ** 3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad((first * active).square().sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), x, create_graph=True)
    third.square().sum().backward()


def two_inner_steps(forward, weight, active, x):
    """MAML's, where inactive weights stay zero."""
    fast = weight
    for _ in range(2):
        (step,) = torch.autograd.grad(forward(x, fast).tanh().square().sum(), fast, create_graph=True)
        fast = fast - 0.1 * step * active
    forward(x + 1, fast).square().sum().backward()


def penalty(forward, weight, active, x):
    x = x.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(forward(x, weight).tanh().sum(), x, create_graph=True)
    (forward(x, weight).tanh().mean() + of_x.square().sum()).backward()


@pytest.mark.parametrize("loss", [penalty, two_inner_steps, curvature])
def test_what_growth_sees_of_such_losses_is_the_gradient_of_the_dense_weight(loss):
    layer = make(ins=8, outs=6, density=0.3)
    keeper = kernels.Recorder(layer)
    weight = layer.to_dense().detach().requires_grad_()
    x = torch.randn(7, 8, dtype=torch.float64)
    loss(lambda x, values: functional_call(layer, {"values": values}, (x,)), layer.values, 1.0, x)
    loss(lambda x, weight: F.linear(x, weight, layer.bias.detach()), weight, weight.detach().ne(0), x)
    torch.testing.assert_close(layer.values.grad, weight.grad.flatten()[layer.flat()])
    torch.testing.assert_close(sum(grad.t() @ input for grad, input in keeper.passes), weight.grad)
