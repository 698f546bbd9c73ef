"""Growth by gradient uses the backward passes that made the gradient that step() uses, and no others."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.checkpoint import checkpoint

from sparsify import GraNet, RigL, sparsify
from sparsify.evolution import by_gradient_among
from tests.support.models import mlp

Z = torch.randn(5, 20, generator=torch.Generator().manual_seed(5))


def batch(number, size=16):
    return torch.randn(size, 20, generator=torch.Generator().manual_seed(number))


def loss_of(model, x):
    return (model(x) - 1).square().mean()


def build(evolution):
    torch.manual_seed(0)
    model = mlp(20, 30, 5)
    return sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.2, evolution=evolution, seed=1)


def plain(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()


def saliency_map(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    optimizer.step()


def saliency_map_before(model, optimizer, x):
    optimizer.zero_grad()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    loss_of(model, x).backward()
    optimizer.step()


def backward_to_inputs_only(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    z = Z.clone().requires_grad_()
    (10 * model(z)).sum().backward(inputs=[z])
    optimizer.step()


def gradients_that_nobody_uses(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    torch.autograd.grad((10 * model(Z)).sum(), list(model.parameters()))
    optimizer.step()


def a_fast_gradient_sign_example(model, optimizer, x):
    z = Z.clone().requires_grad_()
    optimizer.zero_grad()
    (10 * model(z)).sum().backward()  # fills the gradients of the weights too
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()


def an_example_whose_gradients_are_zeroed_in_place(model, optimizer, x):
    z = Z.clone().requires_grad_()
    (10 * model(z)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    loss_of(model, x).backward()
    optimizer.step()


def saved_and_restored(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    saved = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    (10 * model(Z)).sum().backward()
    for p, grad in zip(model.parameters(), saved, strict=True):
        p.grad = grad
    optimizer.step()


def restored_in_place_and_clipped(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    saved = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad(set_to_none=False)
    (10 * model(Z)).sum().backward()
    for p, grad in zip(model.parameters(), saved, strict=True):
        p.grad.copy_(grad)
    clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()


def assigned_by_hand(model, optimizer, x):
    torch.autograd.grad((10 * model(Z)).sum(), list(model.parameters()))
    grads = torch.autograd.grad(loss_of(model, x), list(model.parameters()))
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    optimizer.step()


def an_inner_loop(model, optimizer, x):
    optimizer.zero_grad()
    fast = dict(model.named_parameters())
    for _ in range(3):
        grads = torch.autograd.grad((10 * functional_call(model, fast, (Z,))).sum(), list(fast.values()))
        fast = {name: p - 0.01 * grad for (name, p), grad in zip(fast.items(), grads, strict=True)}
    loss_of(model, x).backward()
    optimizer.step()


def micro_batches(model, optimizer, x):
    optimizer.zero_grad()
    for part in x.chunk(4):
        (loss_of(model, part) / 4).backward()
        z = Z.clone().requires_grad_()
        torch.autograd.grad((10 * model(z)).sum(), z)
    optimizer.step()


def micro_batches_by_hand(model, optimizer, x):
    total = [torch.zeros_like(p) for p in model.parameters()]
    for part in x.chunk(4):
        for sum_, grad in zip(total, torch.autograd.grad(loss_of(model, part), list(model.parameters())), strict=True):
            sum_ += grad / 4
    torch.autograd.grad((10 * model(Z)).sum(), list(model.parameters()))
    for p, grad in zip(model.parameters(), total, strict=True):
        p.grad = grad
    optimizer.step()


def checkpointed(model, optimizer, x):
    optimizer.zero_grad()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    (checkpoint(model, x, use_reentrant=False) - 1).square().mean().backward()
    optimizer.step()


def checkpointed_reentrant(model, optimizer, x):
    optimizer.zero_grad()
    (checkpoint(model, x.clone().requires_grad_(), use_reentrant=True) - 1).square().mean().backward()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    optimizer.step()


def another_optimizers_loss(model, optimizer, x):
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()
    generated = Z.clone().requires_grad_()  # a generator's step, through the discriminator
    (10 * model(generated)).sum().backward()


def scaled(model, optimizer, x):
    optimizer.zero_grad()
    (1024 * loss_of(model, x)).backward()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    for p in model.parameters():
        p.grad /= 1024
    optimizer.step()


def restored_from_two(model, optimizer, x):
    """What was added to the gradient is small, and was taken away again."""
    optimizer.zero_grad()
    loss_of(model, x).backward()
    saved = [p.grad.clone() for p in model.parameters()]
    (0.03 * model(Z)).sum().backward()
    for p, grad in zip(model.parameters(), saved, strict=True):
        p.grad = grad
    optimizer.step()


def an_attack_of_many_steps(model, optimizer, x):
    z = Z.clone()
    for _ in range(20):
        optimizer.zero_grad()
        z = z.detach().requires_grad_()
        (10 * model(z)).sum().backward()
        z = z + 0.01 * z.grad.sign()
    optimizer.zero_grad()
    loss_of(model, x).backward()
    optimizer.step()


def others_in_the_place_of_the_parameters(model, optimizer, x):
    """Beside the model's own, in one loss; their gradients are their own."""
    optimizer.zero_grad()
    others = {name: (2 * p.detach() + 0.1).requires_grad_() for name, p in model.named_parameters()}
    (loss_of(model, x) + 10 * functional_call(model, others, (Z,)).sum()).backward()
    optimizer.step()


def gradients_at_other_parameters(model, optimizer, x):
    """MAML of the first order: the gradient at fast weights is taken for that of the weights."""
    optimizer.zero_grad()
    fast = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    (10 * functional_call(model, fast, (Z,))).sum().backward()
    for p in fast.values():
        p.grad = None
    (functional_call(model, fast, (x,)) - 1).square().mean().backward()
    for name, p in model.named_parameters():
        p.grad = fast[name].grad
    optimizer.step()


def by_torch_func(model, optimizer, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    grads = torch.func.grad(lambda p: (functional_call(model, p, (x,)) - 1).square().mean())(parameters)
    torch.func.grad(lambda p: (10 * functional_call(model, p, (Z,))).sum())(parameters)
    for name, p in model.named_parameters():
        p.grad = grads[name]
    optimizer.step()


def ascent(model, optimizer, x):
    optimizer.zero_grad()
    (-loss_of(model, x)).backward()
    torch.autograd.grad((10 * model(Z)).sum(), list(model.parameters()))
    for p in model.parameters():
        p.grad.neg_()
    optimizer.step()


WAYS = [
    saliency_map, saliency_map_before, backward_to_inputs_only, gradients_that_nobody_uses,
    a_fast_gradient_sign_example, an_example_whose_gradients_are_zeroed_in_place, saved_and_restored,
    restored_in_place_and_clipped, assigned_by_hand, an_inner_loop, micro_batches, micro_batches_by_hand, checkpointed,
    checkpointed_reentrant, another_optimizers_loss, scaled, restored_from_two, an_attack_of_many_steps,
    others_in_the_place_of_the_parameters, gradients_at_other_parameters, by_torch_func, ascent,
]  # fmt: skip


@pytest.mark.parametrize(
    "evolution",
    [RigL(interval=3), RigL(interval=1), GraNet(until=9, interval=3), RigL(interval=3, grow=by_gradient_among(4))],
)
@pytest.mark.parametrize("way", WAYS)
def test_other_backward_passes_do_not_change_what_grows(way, evolution):
    expected, found = build(evolution), build(evolution)
    for number in range(9):
        plain(*expected, batch(number))
        way(*found, batch(number))
        for i in (0, 2):
            assert torch.equal(found[0][i].flat(), expected[0][i].flat()), (number, i)
    assert len(found[1].history) == (9 if evolution.interval == 1 else 3)


def clipped_by_value(model):
    clip_grad_value_(model.parameters(), 1e-3)


def noised(model):
    for p in model.parameters():
        p.grad += 0.1 * p.grad.norm() * torch.randn(p.shape) / p.numel() ** 0.5


def penalized(model):
    for p in model.parameters():
        p.grad += 1e-2 * p.detach()


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("change", [clipped_by_value, noised, penalized])
def test_a_gradient_that_was_changed_by_hand_is_still_that_of_its_passes(change, restored):
    model, optimizer = build(RigL(interval=1))
    other = copy.deepcopy(model)
    loss_of(model, batch(1)).backward()
    if restored:
        saved = [p.grad for p in model.parameters()]
        optimizer.zero_grad()
        (10 * model(Z)).sum().backward()
        for p, grad in zip(model.parameters(), saved, strict=True):
            p.grad = grad
    change(model)
    torch.autograd.grad((10 * model(Z)).sum(), list(model.parameters()))
    x = batch(1)
    weights = [layer.to_dense().detach().requires_grad_() for layer in (other[0], other[2])]
    hidden = (x @ weights[0].t() + other[0].bias).tanh()
    (hidden @ weights[1].t() + other[2].bias - 1).square().mean().backward()
    dense = [weight.grad.abs().flatten() for weight in weights]
    optimizer.step()
    for layer, before, gradient in zip((model[0], model[2]), (other[0], other[2]), dense, strict=True):
        grown = layer.flat()[~torch.isin(layer.flat(), before.flat())]
        gradient[before.flat()] = -1
        assert set(grown.tolist()) == set(gradient.topk(len(grown)).indices.tolist())


def test_growth_follows_a_gradient_penalty_as_in_a_dense_network():
    torch.manual_seed(0)
    layer = nn.Linear(8, 6).double()
    layer, optimizer = sparsify(layer, torch.optim.SGD(layer.parameters(), lr=1e-9), 0.3, evolution=RigL(interval=1))
    before = layer.flat()
    weight = layer.to_dense().detach().requires_grad_()
    x = torch.randn(7, 8, dtype=torch.float64)
    for function in layer, lambda z: nn.functional.linear(z, weight, layer.bias):
        z = x.clone().requires_grad_()
        (of_z,) = torch.autograd.grad(function(z).tanh().sum(), z, create_graph=True)
        (function(z).tanh().mean() + of_z.square().sum()).backward()
    torch.testing.assert_close(layer.values.grad, weight.grad.flatten()[before])
    optimizer.step()
    grown = layer.flat()[~torch.isin(layer.flat(), before)]
    gradient = weight.grad.abs().flatten()
    gradient[before] = -1
    assert len(grown)
    assert set(grown.tolist()) == set(gradient.topk(len(grown)).indices.tolist())


def test_a_layer_that_was_frozen_when_watching_began_grows_by_gradient_once_it_trains():
    model, optimizer = build(RigL(interval=None))
    model[0].requires_grad_(False)
    model, optimizer = sparsify(model, optimizer, evolution=RigL(interval=None))
    model[0].requires_grad_(True)
    loss_of(model, batch(1)).backward()
    optimizer.step()
    assert set(optimizer.evolve().grown) == {"0", "2"}


def test_where_no_pass_made_the_gradient_the_layer_has_none():
    model, optimizer = build(RigL(interval=None))
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), z)
    with pytest.raises(ValueError, match="evolve\\(\\) must follow a backward pass"):
        optimizer.evolve()


LOSSES = [
    (1.0, lambda model: loss_of(model, batch(1))),
    (1e-3, lambda model: 1e4 * model(batch(2)).sin().sum()),  # whose share is small and gradient large
    (0.3, lambda model: (model(batch(3)) + 2).square().mean()),
]


def zeroing_between(model):
    for _, loss in LOSSES:
        model.zero_grad()
        loss(model).backward()
        yield [p.grad.clone() for p in model.parameters()]


def given_back(model):
    for _, loss in LOSSES:
        yield torch.autograd.grad(loss(model), list(model.parameters()))


@pytest.mark.parametrize("each", [zeroing_between, given_back])
def test_gradients_of_several_tasks_count_as_much_as_they_were_added_with(each):
    (model, optimizer), (other, its_optimizer) = build(RigL(interval=1)), build(RigL(interval=1))
    grads = list(each(model))
    for number, p in enumerate(model.parameters()):
        p.grad = sum(share * of_task[number] for (share, _), of_task in zip(LOSSES, grads, strict=True))
    optimizer.step()
    sum(share * loss(other) for share, loss in LOSSES).backward()
    its_optimizer.step()
    for i in (0, 2):
        assert torch.equal(model[i].flat(), other[i].flat())


def test_a_pass_after_the_step_does_not_change_what_grows_by_hand():
    (model, optimizer), expected = build(RigL(interval=None)), build(RigL(interval=None))
    for some, its_optimizer in (model, optimizer), expected:
        loss_of(some, batch(1)).backward()
        its_optimizer.step()
    z = Z.clone().requires_grad_()
    torch.autograd.grad((10 * model(z)).sum(), [z, *model.parameters()])
    assert optimizer.evolve().grown == expected[1].evolve().grown
    for i in (0, 2):
        assert torch.equal(model[i].flat(), expected[0][i].flat())


def test_a_gradient_that_was_zeroed_before_the_step_grows_nothing():
    model, optimizer = build(RigL(interval=2))
    plain(model, optimizer, batch(1))
    before = [model[i].flat() for i in (0, 2)]
    optimizer.zero_grad()
    loss_of(model, batch(2)).backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    for i, flat in zip((0, 2), before, strict=True):
        assert torch.equal(model[i].flat(), flat)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_head_that_has_no_gradient_at_the_step_rests(set_to_none):
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(20, 10), nn.Linear(20, 10)])
    heads, optimizer = sparsify(heads, torch.optim.SGD(heads.parameters(), lr=0.1), 0.3, evolution=RigL(interval=2))
    for number in range(4):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(heads[number % 2], batch(number)).backward()
        optimizer.step()
    assert [set(record.grown) for record in optimizer.history] == [{"1"}, {"1"}]


def test_an_optimizer_that_steps_within_the_backward_pass():
    (model, optimizer), expected = build(RigL(interval=1)), build(RigL(interval=1))
    waiting = set(model.parameters())

    def count(p):
        waiting.discard(p)
        if not waiting:
            optimizer.step()
            optimizer.zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(count)
    loss_of(model, batch(1)).backward()
    plain(*expected, batch(1))
    for i in (0, 2):
        assert torch.equal(model[i].flat(), expected[0][i].flat())
