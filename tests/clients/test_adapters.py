"""Adapters stay dense, PEFT's and those written by hand."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SET, SparseLinear, plan, sparsify

CONFIGS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["body"], modules_to_save=["head"]),
    "DoRA": peft.LoraConfig(r=4, use_dora=True, target_modules=["body"], modules_to_save=["head"]),
    "IA3": peft.IA3Config(target_modules=["body"], feedforward_modules=[], modules_to_save=["head"]),
    "LoHa": peft.LoHaConfig(r=4, target_modules=["body"], modules_to_save=["head"]),
}
X = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.middle = nn.Linear(32, 64), nn.Linear(64, 64)
        self.head, self.out = nn.Linear(64, 40), nn.Linear(40, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.head(torch.tanh(self.middle(torch.tanh(self.body(x)))))))


def adapted(config, trained_base=False):
    """The rest of the model trains too, or a part of it."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), copy.deepcopy(config))
    model.base_model.model.middle.requires_grad_(True)
    model.base_model.model.body.base_layer.requires_grad_(trained_base)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    return model, optimizer


def train(model, optimizer, steps=6):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), torch.arange(16) % 4).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate:UserWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_trains_evolves_saves_and_merges(kind, tmp_path):
    model, optimizer = sparsify(*adapted(CONFIGS[kind]), 0.3, evolution=SET(interval=2), seed=0)
    inner = model.base_model.model
    assert type(inner.middle) is type(inner.head.modules_to_save["default"]) is SparseLinear
    assert not any(isinstance(part, SparseLinear) for part in inner.body.modules())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model, optimizer)
    assert len(optimizer.history) == 3
    now = dict(model.named_parameters())
    assert all(not torch.equal(now[name], tensor) for name, tensor in before.items())
    expected = model(X)

    model.save_pretrained(tmp_path)
    again, _ = sparsify(*adapted(CONFIGS[kind]), 0.3, seed=1)
    rest = {name: tensor for name, tensor in model.state_dict().items() if ".middle." in name}
    again.load_state_dict(rest, strict=False)
    state = peft.load_peft_weights(tmp_path)
    peft.set_peft_model_state_dict(again, state)
    torch.testing.assert_close(again(X), expected)

    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload()
    assert type(merged.body) is nn.Linear
    assert type(merged.head) is SparseLinear
    torch.testing.assert_close(merged(X), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_an_adapter_adds_to_stays_dense_even_where_it_trains(kind):
    pair = adapted(CONFIGS[kind], trained_base=True)
    reasons = {row.name.removeprefix("base_model.model."): row.reason for row in plan(pair[0], 0.3).layers}
    assert reasons["body.base_layer"] == "an adapter (PEFT) reads its weight directly"
    model, optimizer = sparsify(*pair, 0.3)
    train(model, optimizer)
    expected = model(X)
    torch.testing.assert_close(model.merge_and_unload()(X), expected)


def test_the_reasons_are_in_the_plan():
    model, _ = adapted(CONFIGS["LoRA"])
    reasons = {row.name.removeprefix("base_model.model."): row.reason for row in plan(model, 0.3).layers}
    assert reasons["body.lora_A.default"] == reasons["body.lora_B.default"] == "it is an adapter (PEFT)"
    assert reasons["body.base_layer"] == reasons["head.original_module"] == reasons["out"] == "it is frozen"
    assert reasons["middle"] is reasons["head.modules_to_save.default"] is None


def test_where_nothing_but_adapters_trains_it_is_said():
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=4, target_modules=["body", "middle"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"(?s)got none.*it is an adapter \(PEFT\)"):
        sparsify(model, optimizer, 0.3)
    assert model.state_dict().keys() == before.keys()


class LoRALinear(nn.Module):
    def __init__(self, ins, outs, rank=4, names=("A", "B")):
        super().__init__()
        self.linear = nn.Linear(ins, outs, bias=False)
        self.names = names
        self.add_module(names[0], nn.Linear(ins, rank, bias=False))
        self.add_module(names[1], nn.Linear(rank, outs, bias=False))

    def forward(self, x):
        down, up = (getattr(self, name) for name in self.names)
        return self.linear(x) + up(down(x))


class Wrapped(LoRALinear):
    """A class whose name says nothing."""


class Exploration(nn.Module):
    """Has "lora" in its name, and is none."""

    def __init__(self):
        super().__init__()
        self.explorable = nn.Linear(32, 8, bias=False)
        self.exploration = nn.Linear(8, 64, bias=False)


def reasons_of(module):
    return {row.name: row.reason for row in plan(nn.ModuleDict({"m": module}), 0.1).layers}


@pytest.mark.parametrize("kind", [LoRALinear, Wrapped])
@pytest.mark.parametrize(
    "names", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("q_lora_a", "q_lora_b"), ("loraA", "loraB"), ("A", "B")]
)
def test_lora_written_by_hand(kind, names):
    found = reasons_of(kind(32, 64, names=names))
    assert found.pop("m.linear") is None
    expected = None if kind is Wrapped and names == ("A", "B") else "it is an adapter (LoRA)"
    assert set(found.values()) == {expected}
    model, _ = sparsify(nn.ModuleDict({"m": kind(32, 64, names=names)}), None, 0.1)
    assert type(model.m.linear) is SparseLinear
    assert type(model.m.get_submodule(names[0])) is (SparseLinear if expected is None else nn.Linear)


def test_lora_in_a_container_and_what_is_none():
    narrow = nn.Sequential(nn.Linear(32, 4, bias=False), nn.Linear(4, 64, bias=False))
    assert set(reasons_of(nn.ModuleDict({"lora": narrow})).values()) == {"it is an adapter (LoRA)"}
    assert set(reasons_of(Exploration()).values()) == {None}
    assert set(reasons_of(narrow).values()) == {None}
