"""A subclass of nn.Linear or nn.MultiheadAttention becomes sparse only where nothing of it would be lost."""

import abc
from typing import Generic, TypeVar

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparsify import SparseLinear, SparseMultiheadAttention, plan, sparsify


class Norm(nn.Linear):
    def norm(self):
        return self.weight.norm()


class Property(nn.Linear):
    @property
    def scale(self):
        return 2.0


class Static(nn.Linear):
    @staticmethod
    def merged(a, b):
        return a @ b


class Constant(nn.Linear):
    rank = 4


class Called(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


class Saved(nn.Linear):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)


class Mixin:
    def penalty(self):
        return self.weight.square().sum()


class Before(Mixin, nn.Linear):
    pass


class After(nn.Linear, Mixin):
    pass


class Inherited(Norm):
    def __init__(self, *sizes):
        super().__init__(*sizes)


OWN = {
    Norm: "its class Norm has methods of its own: norm",
    Property: "its class Property has methods of its own: scale",
    Static: "its class Static has methods of its own: merged",
    Constant: "its class Constant has attributes of its own: rank",
    Called: "its class Called has methods of its own: __call__",
    Saved: "its class Saved has methods of its own: _save_to_state_dict",
    Before: "its class Before has methods of its own: penalty",
    After: "its class After has methods of its own: penalty",
    Inherited: "its class Inherited has methods of its own: norm",
}


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_a_class_with_members_of_its_own_stays_dense(kind):
    model = nn.Sequential(nn.Linear(20, 30), kind(30, 20))
    assert plan(model, 0.2).layers[1].reason == OWN[kind]
    model, _ = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.2)
    assert isinstance(model[0], SparseLinear)
    assert type(model[1]) is kind


T = TypeVar("T")


class Made(nn.Linear):
    """As Hugging Face's EsmFoldLinear: it only initialises itself in another way."""

    init: str

    def __init__(self, ins, outs, init="relu"):
        super().__init__(ins, outs)
        self.init = init

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


class Shown(nn.Linear):
    def extra_repr(self):
        return "mine"

    def __repr__(self):
        return "Shown()"


class Of(nn.Linear, abc.ABC, Generic[T]):
    """With what abc and typing leave on a class."""


class Slotted(nn.Linear):
    __slots__ = ()
    __constants__ = ("in_features",)


@pytest.mark.parametrize("kind", [Made, Shown, Of, Of[int], Slotted, NonDynamicallyQuantizableLinear])
def test_a_class_that_only_makes_or_shows_itself_becomes_sparse(kind):
    layer = kind(30, 20)
    layer.note = "mine"
    model, _ = sparsify(nn.Sequential(layer), None, 0.2)
    assert type(model[0]) is SparseLinear
    assert model[0].note == "mine"
    assert getattr(model[0], "init", "relu") == "relu"


class WithHeads(nn.MultiheadAttention):
    def prune_heads(self, heads):
        return heads


class Plain(nn.MultiheadAttention):
    def __init__(self, *sizes):
        super().__init__(*sizes, batch_first=True)


def test_so_with_attention():
    model = nn.ModuleDict({"own": WithHeads(16, 2), "plain": Plain(16, 2), "out": nn.MultiheadAttention(16, 2)})
    model.out.out_proj = Norm(16, 16)
    reasons = {row.name: row.reason for row in plan(model, 0.3).layers}
    for name in "q_proj", "k_proj", "v_proj", "out_proj":
        assert reasons[f"own.{name}"] == "its class WithHeads has methods of its own: prune_heads"
        assert reasons[f"plain.{name}"] is None
    assert reasons["out.out_proj"] == OWN[Norm]
    assert reasons["out.q_proj"] is None
    model, _ = sparsify(model, None, 0.3)
    assert type(model.own) is WithHeads
    assert type(model.plain) is SparseMultiheadAttention
    assert type(model.out.out_proj) is Norm
