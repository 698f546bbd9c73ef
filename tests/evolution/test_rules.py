"""What drop rules and scopes of the user's give is checked, alike on the compiled path and the plain one."""

import numpy as np
import pytest
import torch

from sparsify import Evolution
from sparsify._src.evolution.update import propose_updates
from sparsify.evolution import across_layers, magnitude, per_layer, sparing_units
from tests.support.views import Other, emptied, path, positions, refused, view_of  # noqa: F401

nan = torch.nan


NO_SCORES = {
    "None": None,
    "[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ...]": [1.0] * 10,
    "array([1., 1...., 1., 1., 1.])": np.ones(10),
    "torch.float32 (9,) on cpu": torch.ones(9),
    "torch.float32 (11,) on cpu": torch.ones(11),
    "torch.float32 (10, 1) on cpu": torch.ones(10, 1),
    "torch.float32 () on cpu": torch.ones(()),
    "torch.int64 (10,) on cpu": torch.ones(10, dtype=torch.int64),
    "torch.bool (10,) on cpu": torch.ones(10, dtype=torch.bool),
    "torch.complex64 (10,) on cpu": torch.ones(10, dtype=torch.complex64),
    "torch.float32 (10,) on meta": torch.ones(10, device="meta"),
    "torch.sparse_coo torch.float32 (10,) on cpu": torch.ones(10).to_sparse(),
    "Other torch.float32 (10,) on cpu": torch.ones(10).as_subclass(Other),
    "torch.float32 (10,) on cpu": emptied(10),
}


@pytest.mark.parametrize("got", NO_SCORES)
def test_scores_must_be_plain_numbers(got):
    def mine(layer):
        return NO_SCORES[got]

    message = f"a drop rule must give a score to each of the 10 connections of layer 'fc', got {got} from mine. Scores "
    refused(message, drop=mine)
    refused(message.replace("mine.", "sparing_units(mine)."), drop=sparing_units(mine), scope=across_layers)


@pytest.mark.parametrize("scope", [per_layer, across_layers])
@pytest.mark.parametrize(
    "change",
    [
        lambda scores: scores.requires_grad_(),
        torch.nn.Parameter,
        lambda scores: scores.repeat_interleave(2)[::2],
        lambda scores: torch._neg_view(-scores),
        torch.Tensor.half,
        torch.Tensor.bfloat16,
        torch.Tensor.double,
        lambda scores: scores.to(torch.float8_e4m3fn),
    ],
)
def test_scores_of_any_floating_kind_do(change, scope):
    scores = torch.tensor([3.0, 1.0, 4.0, 1.5, 2.0])
    layer = view_of(scores.clone())
    for drop in (lambda layer: change(scores.clone())), sparing_units(lambda layer: change(scores.clone())):
        [update] = propose_updates(Evolution(interval=None, drop=drop, scope=scope), [layer], [0], 0.4)
        assert update.kept.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("spared", "got"),
    [
        ([0], "[0]"),
        (torch.tensor([0]), "torch.int64 (1,) on cpu"),
        (torch.ones(10), "torch.float32 (10,) on cpu"),
        (torch.ones(9, dtype=torch.bool), "torch.bool (9,) on cpu"),
    ],
)
def test_what_a_rule_spares_must_be_a_bool_for_each_connection(spared, got):
    class Mine:
        def __call__(self, layer):
            return magnitude(layer)

        def spares(self, layer, scores):
            return spared

        def __repr__(self):
            return "Mine()"

    refused(
        f"a drop rule's spares() must give a bool to each of the 10 connections of layer 'fc', got {got} from Mine(). ",
        drop=Mine(),
    )


PAIRS = "give a pair (positions, count) for each of 1 layers, got "
PAIR = "give a pair (positions, count) for each layer, got "
VECTOR = "give positions as a vector of int64 on cpu, got "
COUNT = "give a whole number of range(391) as count, got "
BOOKS = "drop as many as grow and the excess, 0, got "
HERE = " from mine in layer 'fc'."


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, PAIRS + "None from mine."),
        ([], PAIRS + "[] from mine."),
        ([(positions(0), 1)] * 2, PAIRS),
        (iter([(positions(0), 1)]), PAIRS),
        ({0: (positions(0), 1)}, PAIRS),
        ([positions(0, 1)], PAIR + "torch.int64 (2,) on cpu" + HERE),
        ([(positions(0),)], PAIR),
        ([(positions(0), 1, 1)], PAIR),
        ([None], PAIR + "None" + HERE),
        ([([0], 1)], VECTOR + "[0]" + HERE),
        ([(np.array([0]), 1)], VECTOR + "array([0])" + HERE),
        ([(positions(0, dtype=torch.int32), 1)], VECTOR + "torch.int32 (1,) on cpu" + HERE),
        ([(positions(0, dtype=torch.float32), 1)], VECTOR),
        ([(torch.arange(10) < 1, 1)], VECTOR + "torch.bool (10,) on cpu" + HERE + " Turn a boolean vector into"),
        ([(positions(0)[None], 1)], VECTOR + "torch.int64 (1, 1) on cpu" + HERE),
        ([(positions(0)[0], 1)], VECTOR + "torch.int64 () on cpu" + HERE),
        ([(positions(0).to("meta"), 1)], VECTOR + "torch.int64 (1,) on meta" + HERE),
        ([(positions(1).to_sparse(), 1)], VECTOR + "torch.sparse_coo torch.int64 (1,) on cpu" + HERE),
        ([(emptied(1, torch.int64), 1)], VECTOR),
        ([(positions(0, 10), 2)], "give positions of range(10), got 0 to 10" + HERE),
        ([(positions(3, -1), 2)], "give positions of range(10), got -1 to 3" + HERE),
        ([(positions(3, 4, 3), 3)], "give each position once, got 3 more than once" + HERE),
        ([(positions(0), 1.0)], COUNT + "1.0" + HERE),
        ([(positions(0), True)], COUNT + "True" + HERE),
        ([(positions(0), nan)], COUNT + "nan" + HERE),
        ([(positions(0), "1")], COUNT + "'1'" + HERE),
        ([(positions(0), None)], COUNT + "None" + HERE),
        ([(positions(0), torch.tensor(1))], COUNT + "torch.int64 () on cpu" + HERE),
        ([(positions(0), -1)], COUNT + "-1" + HERE),
        ([(positions(0), 391)], COUNT + "391" + HERE),
        ([(positions(0, 1), 1)], BOOKS + "1 more than grow from mine."),
        ([(positions(0), 2)], BOOKS + "-1 more than grow from mine."),
    ],
)
def test_a_scope_must_choose_what_can_be_carried_out(answer, message):
    def mine(layers, scores, surplus, fraction):
        return answer

    refused("a scope must " + message, scope=mine)


def test_a_scope_of_the_user_s_must_leave_what_is_spared():
    def mine(layers, scores, surplus, fraction):
        return [(torch.tensor([3, 5]), 2)]

    message = "a scope must leave what is spared, got position 3 from mine in layer 'fc'. Choose among positions where "
    refused(message + "layer.spared is False.", scope=mine, drop=sparing_units())


def test_a_scope_may_give_numbers_of_numpy_and_strided_positions():
    def mine(layers, scores, surplus, fraction):
        return ([torch.tensor([3, 9, 1, 9])[::2], np.int64(2)],)

    [update] = propose_updates(Evolution(interval=None, scope=mine), [view_of(torch.ones(5))], [0], 0.4)
    assert update.kept.tolist() == [0, 2, 4]
    assert len(update.flat) == 5


@pytest.mark.parametrize(("surplus", "lost"), [(5, 4), (5, 6), (0, 1), (3, 0)])
def test_a_scope_must_drop_the_surplus(surplus, lost):
    def mine(layers, scores, surplus, fraction):
        return [(torch.arange(lost), 0)]

    with pytest.raises(
        ValueError, match=f"a scope must drop as many as grow and the excess, {surplus}, got {lost} more"
    ):
        propose_updates(Evolution(interval=None, scope=mine), [view_of(torch.ones(8))], [surplus], 0.0)
