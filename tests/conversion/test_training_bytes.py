"""Bytes in training: what a plan expects is what is held after a step."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

from sparsify import SparseLinear, plan, sparsify, summary
from sparsify._src.conversion.training_bytes import tried
from tests.support.marks import needs_muon
from tests.support.models import mlp
from tests.support.wrappers import SAM, Lookahead

OPTIMIZERS = {
    "SGD": (SGD, {}, 0),
    "momentum": (SGD, {"momentum": 0.9}, 1),
    "Adam": (Adam, {}, 2),
    "amsgrad": (AdamW, {"amsgrad": True}, 3),
    "fused": (AdamW, {"fused": True}, 2),
    "NAdam": (NAdam, {}, 2),
    "RAdam": (RAdam, {}, 2),
    "Adamax": (Adamax, {}, 2),
    "RMSprop": (RMSprop, {}, 1),
    "RMSprop centered with momentum": (RMSprop, {"centered": True, "momentum": 0.9}, 3),
    "Adagrad": (Adagrad, {}, 1),
    "Adadelta": (Adadelta, {}, 2),
    "Rprop": (Rprop, {}, 2),
    "ASGD": (ASGD, {}, 1),
}
"""By name: the class, its options, and how many vectors it keeps."""


def network(dtype=torch.float32):
    """Two layers that become sparse, one that stays dense, an embedding and a frozen layer."""
    model = nn.Sequential(nn.Embedding(30, 40), *mlp(40, 60, 50), nn.Linear(50, 4), nn.Linear(4, 4))
    model[-1].requires_grad_(False)
    return model.to(dtype)


def step(model, optimizer):
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()


def held(optimizer, weight, *others):
    """Bytes of a weight, its gradient, what the optimizer keeps for it, and of other tensors."""
    state = [x for x in optimizer.state[weight].values() if torch.is_tensor(x)]
    return sum(x.nbytes for x in (weight, weight.grad, *state, *others))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plan_tells_what_training_holds(name, dtype):
    kind, options, count = OPTIMIZERS[name]
    model = network(dtype)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.01, **options)
    state = len(optimizer.state)  # Adagrad has some from the beginning
    told = plan(model, {"[13]": 0.2}, optimizer=optimizer)
    assert len(optimizer.state) == state
    assert all(p.grad is None for p in model.parameters())

    twin = network(dtype)
    dense = kind([p for p in twin.parameters() if p.requires_grad], lr=0.01, **options)
    step(twin, dense)
    dense_bytes = [held(dense, twin[i].weight) for i in (0, 1, 3, 4)]
    assert [row.dense_training_bytes for row in told.layers] == [*dense_bytes, 16 * dtype.itemsize]

    model, optimizer = sparsify(model, optimizer, {"[13]": 0.2})
    step(model, optimizer)
    expected = [
        held(optimizer, module.values, *module.buffers())
        if isinstance(module, SparseLinear)
        else held(optimizer, module.weight)
        for module in (model[0], model[1], model[3], model[4])
    ]
    assert [row.training_bytes for row in told.layers] == [*expected, 16 * dtype.itemsize]
    layer = told.layers[1]
    assert layer.training_bytes - layer.bytes == pytest.approx((1 + count) * layer.nnz * dtype.itemsize, abs=24)

    now = summary(model, optimizer)
    assert [(row.training_bytes, row.dense_training_bytes) for row in now.layers] == [
        (row.training_bytes, row.dense_training_bytes) for row in told.layers
    ]
    again = plan(model, optimizer=optimizer)
    assert [row.training_bytes for row in again.layers] == [row.training_bytes for row in told.layers]


def test_the_table_has_the_columns_only_where_an_optimizer_is_given():
    model = network()
    report = plan(model, 0.2)
    assert "training" not in str(report)
    assert {row.training_bytes for row in report.layers} == {None}
    assert report.totals[-1].training_bytes is None
    adam = Adam(model.parameters())
    report = plan(model, 0.2, optimizer=adam)
    assert str(report).splitlines()[0].split()[4:10] == ["bytes", "if", "dense", "training", "if", "dense"]
    whole = report.totals[-1]
    assert whole.training_bytes == sum(row.training_bytes for row in report.layers)
    last = " ".join(str(report).splitlines()[7].split())
    assert f" {whole.dense_bytes:,} {whole.training_bytes:,} {whole.dense_training_bytes:,} " in last
    assert report.rows()[0]["training_bytes"] == report.layers[0].training_bytes


def test_tied_weights_train_once():
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False))
    model[2].weight = model[0].weight
    report = plan(model, 0.5, optimizer=SGD(model.parameters(), 0.1))
    whole = report.totals[-1]
    assert whole.training_bytes == 2 * 96 * 4 + report.layers[1].training_bytes
    assert whole.dense_training_bytes == 2 * (96 + 64) * 4


def test_larger_than_dense_is_what_is_larger_in_training_where_that_is_known():
    model = mlp(40, 60)
    for optimizer, is_larger in [(None, True), (Adam(model.parameters()), False)]:
        report = plan(model, 0.4, optimizer=optimizer)
        assert report.layers[0].is_worse == is_larger
        assert ("larger and slower" in str(report)) == is_larger


def test_a_summary_tells_what_is_kept_now():
    model = network()
    model, adam = sparsify(model, Adam(model.parameters()), 0.2)
    layer = model[1]
    before = summary(model, adam).layers[1]
    assert before.training_bytes == before.bytes + layer.values.nbytes, "the gradient; Adam has not stepped yet"
    step(model, adam)
    after = summary(model, adam).layers[1]
    assert after.training_bytes == before.training_bytes + 2 * layer.values.nbytes + 4


def test_state_that_is_there_is_counted_as_it_is():
    model = mlp(40, 60, 50)
    adam = Adam(model.parameters())
    model(torch.randn(3, 40)).sum().backward()
    adam.step()
    adam.state[model[0].weight]["average"] = torch.zeros_like(model[0].weight)
    first, second = plan(model, 0.2, optimizer=adam).layers
    assert first.training_bytes - first.bytes == 4 * first.nnz * 4 + 4
    assert second.training_bytes - second.bytes == 3 * second.nnz * 4 + 4


def test_each_param_group_has_its_options_and_each_of_several_optimizers_its_layers():
    model = mlp(40, 60, 50, 30)
    groups = [{"params": model[0].parameters(), "momentum": 0.9}, {"params": model[2].parameters()}]
    both = SGD(groups, lr=0.1), Adam(model[4].parameters())
    rows = plan(model, 0.2, optimizer=both).layers
    assert [(row.training_bytes - row.bytes) // row.nnz for row in rows] == [8, 4, 12]


def test_attention_is_told_for_each_projection():
    attention = nn.MultiheadAttention(32, 4)
    adam = Adam(attention.parameters())
    rows = plan(attention, 0.2, optimizer=adam).layers
    assert [row.training_bytes for row in rows] == [row.bytes + 12 * row.nnz + 4 for row in rows]


def test_weights_of_other_shapes_count_whole():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 4, 5), nn.LSTM(4, 6))
    rows = plan(model, 0.5, optimizer=SGD(model.parameters(), 0.1, momentum=0.9)).layers
    assert [row.training_bytes for row in rows[1:]] == [3 * 300 * 4, 3 * 4 * (24 * 4 + 24 * 6)]


def test_state_that_is_smaller_than_a_matrix_is_told_for_each():
    model = nn.Sequential(nn.Linear(40, 60))
    adafactor = Adafactor(model.parameters())
    (row,) = plan(model, 0.2, optimizer=adafactor).layers
    assert row.training_bytes == row.bytes + 2 * row.nnz * 4 + 4  # of a vector it keeps a vector
    assert row.dense_training_bytes == 2 * 2400 * 4 + (40 + 60) * 4 + 4  # of a matrix a row and a column


@pytest.mark.parametrize(
    "make",
    [
        LBFGS,
        partial(SAM, base=partial(SGD, lr=0.1)),
        lambda params: Lookahead(Adam(params)),
        pytest.param(lambda params: Needy(params, object()), id="one with an argument that is not an option"),
    ],
)
def test_what_cannot_be_found_out_is_not_told(make):
    model = mlp(40, 60, 50)
    optimizer = make(model.parameters())
    report = plan(model, 0.2, optimizer=optimizer)
    assert {row.training_bytes for row in report.layers} == {None}
    assert "training" not in str(report).splitlines()[0]
    kind = type(optimizer).__name__
    assert report.notes[-1] == f"bytes in training are not known: what {kind} keeps could not be found out"
    assert report.notes[-1] in str(report).splitlines()


def test_of_several_optimizers_those_that_are_known_are_told():
    model = mlp(40, 60, 50)
    both = Adam(model[0].parameters()), LBFGS(model[2].parameters())
    report = plan(model, 0.2, optimizer=both)
    assert [row.training_bytes is None for row in report.layers] == [False, True]
    assert "training" not in str(report).splitlines()[0]


def test_what_lbfgs_keeps_of_all_parameters_together_is_not_told_after_its_steps_either():
    model = mlp(40, 60)
    lbfgs = LBFGS(model.parameters())
    x = torch.randn(3, 40)
    lbfgs.step(lambda: (lbfgs.zero_grad(), loss := model(x).square().mean(), loss.backward())[1])
    assert lbfgs.state[model[0].weight]
    for report in plan(model, 0.2, optimizer=lbfgs), summary(model, lbfgs):
        assert report.layers[0].training_bytes is None
        assert "LBFGS" in report.notes[-1]


class Around(SGD):
    """Of its constructor only the default could be tried out, not what it was given."""

    def __init__(self, params, lr=0.1, inside=SGD):
        super().__init__(params, lr)
        self.inside = inside(self.param_groups, lr)


class Counting(SGD):
    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["histogram"] = torch.zeros(10)


@pytest.mark.parametrize("make", [lambda params: Around(params, inside=Adam), Counting])
def test_what_would_have_to_be_guessed_is_not_told(make):
    model = mlp(40, 60)
    assert plan(model, 0.2, optimizer=make(model.parameters())).layers[0].training_bytes is None


class Needy(SGD):
    def __init__(self, params, needed):
        super().__init__(params, lr=0.1)
        self.needed = needed


def test_what_wrappers_keep_is_told_once_they_have_stepped():
    model = mlp(40, 60, 50)
    sam = SAM(model.parameters(), partial(SGD, lr=0.1, momentum=0.9))
    model, sam = sparsify(model, sam, 0.2)

    def closure():
        loss = model(torch.randn(3, 40)).square().mean()
        loss.backward()
        return loss

    sam.step(closure)
    for report in summary(model, sam), plan(model, optimizer=sam):
        assert [row.training_bytes for row in report.layers] == [row.bytes + 3 * 4 * row.nnz for row in report.layers]


class KeepsAList(SGD):
    def step(self, closure=None):
        self.velocities = [torch.zeros_like(p) for group in self.param_groups for p in group["params"]]


def test_state_in_a_list_is_found():
    model = mlp(40, 60, 50)
    rows = plan(model, 0.2, optimizer=KeepsAList(model.parameters(), lr=0.1)).layers
    assert [row.training_bytes for row in rows] == [row.bytes + 2 * 4 * row.nnz for row in rows]


def test_trying_out_leaves_everything_as_it_was():
    model = mlp(40, 60, 50)
    scheduled = SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)  # which replaces the optimizer's own step()
    model(torch.randn(3, 40)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    random = torch.get_rng_state()
    stepped = []
    scheduled.register_step_pre_hook(lambda *_: stepped.append(1))
    report = plan(model, 0.2, optimizer=scheduled)
    assert report.layers[0].training_bytes == report.layers[0].bytes + 8 * report.layers[0].nnz
    assert all(map(torch.equal, before, model.parameters()))
    assert not scheduled.state
    assert not stepped
    assert torch.equal(torch.get_rng_state(), random)


def test_random_numbers_of_an_optimizer_are_given_back():
    class Random(SGD):
        def step(self, closure=None):
            torch.rand(3)
            self.state[self.param_groups[0]["params"][0]]["noise"] = torch.rand(5)

    torch.manual_seed(0)
    random = torch.get_rng_state()
    linear = nn.Parameter(torch.zeros(5))
    sgd = Random([linear], lr=0.1)
    assert tried(sgd, sgd.param_groups[0], nn.Parameter(torch.zeros(5))) == [((5,), 4)]
    assert torch.equal(torch.get_rng_state(), random)


def test_meta_models_are_told_too():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000))
    (row,) = plan(model, 1e-4, optimizer=Adam(model.parameters())).layers
    assert row.training_bytes == row.bytes + 3 * 4 * row.nnz + 4
    assert row.dense_training_bytes == 4 * 4 * 10**10 + 4
    (row,) = plan(model, 1e-4, optimizer=Adafactor(model.parameters())).layers
    assert row.training_bytes == row.bytes + 2 * 4 * row.nnz + 4


def test_what_is_refused_as_an_optimizer_is_named():
    model = mlp(40, 60)
    for call in (partial(plan, model, 0.2), partial(summary, model)):
        with pytest.raises(
            TypeError, match=r"optimizer must be a torch.optim.Optimizer, got int\. Without one: None\."
        ):
            call(optimizer=3)
        with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got str"):
            call(optimizer="adam")


@needs_muon
def test_an_optimizer_of_matrices_has_nothing_for_a_vector():
    model = nn.Sequential(nn.Linear(40, 60, bias=False))
    report = plan(model, 0.2, optimizer=torch.optim.Muon(model.parameters()))
    assert report.layers[0].training_bytes is None
    assert report.layers[0].dense_training_bytes == 3 * 2400 * 4
