"""What refers to dense weights that sparse layers have replaced: memory is given back, and its use is told."""

import copy
import gc
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from sparsify import SET, SparseOptimizer, sparsify
from tests.support.models import mlp

USED = "layer '0' must be used where it is in the model now, got the Linear that was there before"


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model, optimizer, *inputs):
    x = torch.randn(4, 12)
    optimizer.zero_grad()
    model(*(inputs or (x,))).square().mean().backward()
    optimizer.step()


class Steps(nn.Module):
    """Its layers are in a list beside its modules."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.steps = [self.fc, torch.relu]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def test_a_forward_pass_through_an_old_layer_raises_and_says_why():
    model, optimizer = Steps(), None
    model, optimizer = sparsify(model, sgd(model), 0.3)
    with pytest.raises(RuntimeError, match=r"layer 'fc' must be used where it is in the model now, got the Linear"):
        model(torch.randn(4, 12))
    model.steps[0] = model.get_submodule("fc")  # the way out
    train(model, optimizer)
    assert model.fc.values.grad is not None


@pytest.mark.parametrize(
    "use",
    [
        lambda old: old(torch.randn(2, 12)),
        lambda old: old.forward(torch.randn(2, 12)),
        lambda old: nn.functional.linear(torch.randn(2, 12), old.weight),
        lambda old: nn.Linear.forward(old, torch.randn(2, 12)),
        lambda old: nn.Sequential(old)(torch.randn(2, 12)),
        lambda old: copy.deepcopy(old)(torch.randn(2, 12)),
        lambda old: pickle.loads(pickle.dumps(old))(torch.randn(2, 12)),
    ],
)
def test_however_an_old_layer_is_used_it_says_why(use):
    model = mlp(12, 16, 4)
    old = model[0]
    sparsify(model, None, 0.3)
    with pytest.raises(RuntimeError, match=USED):
        use(old)
    assert isinstance(old, nn.Linear)
    assert "Linear(in_features=12" in repr(old)
    assert [name for name, _ in old.named_parameters()] == ["bias"]


def test_a_bound_method_of_an_old_layer_says_why():
    model = mlp(12, 16, 4)
    bound = model[0].forward
    sparsify(model, None, 0.3)
    with pytest.raises(RuntimeError, match=USED):
        bound(torch.randn(2, 12))


def test_a_layer_that_another_model_shares_says_why():
    shared = nn.Linear(12, 16)
    one, other = nn.Sequential(shared, nn.Linear(16, 4)), nn.Sequential(shared, nn.Linear(16, 3))
    sparsify(one, None, 0.3)
    with pytest.raises(RuntimeError, match=USED):
        other(torch.randn(2, 12))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Linear(64, 10), 1),
        (lambda: nn.MultiheadAttention(64, 4), 3),
    ],
)
def test_a_model_that_is_not_taken_from_the_result_says_so(make, inputs):
    model = make()
    returned, _ = sparsify(model, sgd(model), 0.1)
    x = [torch.randn(5, 2, 64)] * inputs
    kind = type(returned).__mro__[0].__name__.removeprefix("Sparse")
    with pytest.raises(RuntimeError, match=f"model must be the one that sparsify\\(\\) returned, got the {kind}"):
        model(*x)
    returned(*x)


def test_the_memory_of_dense_weights_is_given_back_whoever_holds_them():
    model = mlp(12, 16, 4)
    params = list(model.parameters())
    bias = params[1]
    params[0].grad = torch.ones(16, 12)
    state = model.state_dict()
    before = copy.deepcopy(state)
    sparse, _ = sparsify(model, None, 0.3)
    assert [p.numel() for p in params] == [0, 16, 0, 4]
    assert params[0].grad is None
    assert sparse[0].bias is bias
    for key, tensor in state.items():  # what was taken from the model before is its owner's
        assert torch.equal(tensor, before[key])


def keep_a_list(model):
    return list(model.parameters())


def keep_a_dict(model):
    return OrderedDict(model.named_parameters())


def keep_another_optimizer(model):
    return torch.optim.Adam(model.parameters())


def keep_one(model):
    return model[0].weight


@pytest.mark.parametrize("keep", [keep_a_list, keep_a_dict, keep_another_optimizer, keep_one])
def test_old_weights_that_something_holds_are_told_of_once_by_name(keep):
    model = mlp(12, 16, 4)
    kept = keep(model)
    model, optimizer = sparsify(model, sgd(model), 0.3)
    layers = "'0'" if keep is keep_one else "'0', '2'"
    with pytest.warns(UserWarning, match=f"Something still holds the dense weights of {layers} that") as said:
        train(model, optimizer)
    assert said[0].filename == __file__
    train(model, optimizer)
    assert kept is not None


def test_a_list_made_before_clips_nothing_but_biases_and_one_made_after_all():
    model = mlp(12, 16, 4)
    model, optimizer = sparsify(model, sgd(model), 0.3)
    params = list(model.parameters())
    model(torch.randn(4, 12)).square().mean().backward()
    clip_grad_norm_(params, 1e-3)
    assert torch.stack([p.grad.norm() for p in model.parameters()]).norm() <= 1.001e-3
    optimizer.step()


def test_no_alarm_where_nothing_holds_them():
    model = mlp(12, 16, 4)
    layers = [model[0], model[2]]  # modules without their weights do no harm
    named = dict(model.named_modules())
    plain = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(plain, 1)
    loss = model(torch.randn(4, 12)).sum()  # a graph of the dense weights, which is alive
    average = torch.optim.swa_utils.AveragedModel(model)
    copied, saved = copy.deepcopy(model), model.state_dict()
    model, optimizer = sparsify(model, plain, 0.3, evolution=SET(interval=2))
    for _ in range(3):
        train(model, optimizer)
    scheduler.step()
    assert all((layers, named, average, copied, saved, loss.grad_fn))


def test_garbage_that_has_not_been_collected_is_no_alarm():
    model = mlp(12, 16, 4)
    cycle = {"weights": list(model.parameters())}
    cycle["itself"] = cycle
    gc.disable()
    try:
        del cycle
        model, optimizer = sparsify(model, sgd(model), 0.3)
        train(model, optimizer)
    finally:
        gc.enable()


def test_a_call_that_fails_leaves_the_old_layers_in_use(monkeypatch):
    model = mlp(12, 16, 4)
    params, before = list(model.parameters()), copy.deepcopy(model.state_dict())
    monkeypatch.setattr(SparseOptimizer, "__init__", lambda *_, **__: 1 / 0)
    optimizer = sgd(model)
    with pytest.raises(ZeroDivisionError):
        sparsify(model, optimizer, 0.3)
    assert all(torch.equal(p, q) for p, q in zip(params, before.values(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer)


def test_attention_left_dense_in_part_uses_its_own_projection():
    model = nn.Sequential(OrderedDict(attention=nn.MultiheadAttention(16, 2)))
    old = model.attention
    projection = old.out_proj
    model, _ = sparsify(model, None, {"attention.q_proj": 0.3})
    assert model.attention.out_proj is projection
    x = torch.randn(3, 2, 16)
    model.attention(x, x, x)
    with pytest.raises(RuntimeError, match="layer 'attention' must be used where it is"):
        old(x, x, x)
