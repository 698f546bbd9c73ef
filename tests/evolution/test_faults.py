"""What is wrong with the answer of a rule is named: the layer, the rule, the property, and what to do."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsify import SET, Evolution, RigL, sparsify
from sparsify._src.evolution.drop import checked_scores
from sparsify._src.evolution.growth import checked_places
from sparsify._src.evolution.update import checked_grown_values, propose_updates
from sparsify.evolution import by_gradient, per_layer, saliency, sparing_units, uniformly
from tests.support.views import path, positions, refused, view_of  # noqa: F401

inf, nan = torch.inf, torch.nan


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            None,
            "got None from mine in layer 'fc'. Places are row * in_features + col, outside layer.flat. It gave noth",
        ),
        ([3, 9], "outside layer.flat. Its type is list: torch.as_tensor(...) makes a tensor."),
        (np.array([3, 9]), "outside layer.flat. Its type is ndarray: torch.as_tensor(...) makes a tensor."),
        (positions(9, 3), "got places that are not sorted: 9 comes before 3, from mine in layer 'fc'."),
        (positions(3, 3), "got place 3 twice from mine in layer 'fc'."),
        (positions(3, 50), "got place 50, which is active already, from mine in layer 'fc'."),
        (
            positions(3, 210),
            "got place 210, which was active until now: what is dropped does not grow again, from mine",
        ),
        (positions(3, 6000), "got place 6000, which is outside 0..399, from mine in layer 'fc'."),
        (positions(-3, 6), "got place -3, which is outside 0..399, from mine in layer 'fc'."),
        (positions(3, 9, dtype=torch.int32), "outside layer.flat. Places of torch.int32 become int64 by .long()."),
        (torch.tensor([3.0, 9.0]), "outside layer.flat. Places of torch.float32 become int64 by .long()."),
        (positions(3), "outside layer.flat. Its length is 1, not 2."),
        (positions(3, 9)[None], "outside layer.flat. It has 2 dimensions, not one: .flatten() has one."),
        (
            positions(3, 9).to("meta"),
            "outside layer.flat. It is on meta, not on cpu: .to(layer.values.device) brings it",
        ),
        (torch.arange(400) < 2, "outside layer.flat. Turn a mask into places with .nonzero().squeeze(1)."),
    ],
)
def test_of_places(answer, says):
    def mine(layer, count):
        return answer

    layer = view_of(torch.arange(10.0, 0, -1), (20, 20), [0, 50, 70, 90, 110, 130, 150, 170, 190, 210])
    layer.survives[-2:] = False
    object.__setattr__(layer, "name", "fc")
    with pytest.raises(ValueError, match=r"^a growth rule must give 2 sorted, unique, inactive places") as error:
        checked_places(mine, layer, 2)
    assert says in str(error.value)
    refused("a growth rule must give 2 sorted, unique, inactive places of range(400) as int64 on cpu, got ", grow=mine)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            None,
            "got None from mine. Scores are a dense floating-point vector on cpu. It gave nothing: end it with return.",
        ),
        ([1.0] * 10, "Its type is list: torch.as_tensor(...) makes a tensor."),
        (np.ones(10), "Its type is ndarray: torch.as_tensor(...) makes a tensor."),
        (torch.ones(10, dtype=torch.int64), "Scores of torch.int64 become floating-point by .float()."),
        (torch.ones(9), "Its length is 9, not 10."),
        (torch.ones(10, 1), "It has 2 dimensions, not one"),
        (torch.full((10,), nan), "got NaN for 10 of them, first at position 0 where the value is 10, from mine."),
    ],
)
def test_of_scores(answer, says):
    def mine(layer):
        return answer

    layer = view_of(torch.arange(10.0, 0, -1))
    with pytest.raises(
        ValueError, match=r"^a drop rule must give a score to each of the 10 connections of layer 'layer'"
    ) as e:
        checked_scores(mine, layer)
    assert says in str(e.value)
    refused("a drop rule must give a score to each of the 10 connections of layer 'fc', got ", drop=mine)


@pytest.mark.parametrize("odd", [nan, inf, -inf])
def test_nan_is_a_rule_s_fault_only_where_value_and_gradient_are_numbers(odd):
    def mine(layer):
        scores = layer.values.abs().clone()
        scores[1] = nan
        return scores

    assert checked_scores(mine, view_of([1.0, odd, 2.0])).isnan().tolist() == [False, True, False]
    gradient = torch.tensor([1.0, odd, 1.0])
    assert checked_scores(mine, view_of([1.0, 1.0, 2.0], gradient=gradient)).isnan().tolist() == [False, True, False]
    for layer in view_of([odd, 1.0, 2.0]), view_of([1.0, 1.0, 2.0], gradient=torch.tensor([odd, 1.0, 1.0])):
        with pytest.raises(
            ValueError, match="got NaN for 1 of them, first at position 1 where the value is 1, from mine"
        ):
            checked_scores(mine, layer)
    checked_scores(lambda layer: torch.full((2,), inf), view_of([1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:sparsify's native CPU kernels were not compiled")
@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize(
    "algorithm",
    [
        SET(interval=1),
        RigL(interval=1),
        Evolution(interval=1, drop=saliency, grow=by_gradient),
        Evolution(interval=1, drop=sparing_units(saliency), scope=per_layer),
    ],
    ids=repr,
)
def test_a_model_that_has_diverged_raises_nothing(algorithm, value):
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))
    model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3, evolution=algorithm)
    for _ in range(3):
        sgd.zero_grad()
        (model(torch.randn(4, 12)).square().mean() * value).backward()
        sgd.step()
    assert len(sgd.history) == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "got None from mine in layer 'layer'. Give a dense vector, such as torch.zeros(count). It gave nothing"),
        ([0.0, 0.0], "Its type is list: torch.as_tensor(...) makes a tensor."),
        (torch.zeros(3), "Its length is 3, not 2."),
        (torch.zeros(2, dtype=torch.int64), "got torch.int64 (2,) on cpu from mine in layer 'layer'."),
        (torch.tensor([0.0, nan]), "grown_values must give finite numbers, got nan from mine in layer 'layer'."),
        (torch.tensor([-inf, 0.0]), "grown_values must give finite numbers, got -inf from mine in layer 'layer'."),
    ],
)
def test_of_grown_values(answer, says):
    def mine(count, shape, nnz, generator):
        return answer

    layer = view_of(torch.ones(10))
    [update] = propose_updates(Evolution(interval=None), [layer], [0], 0.2)
    with pytest.raises(ValueError, match=r"^grown_values must give ") as error:
        checked_grown_values(mine, update, layer)
    assert says in str(error.value)


def test_of_a_scope():
    def mine(layers, scores, excess, fraction):
        return [(np.array([0]), 1)]

    says = (
        "a scope must give positions as a vector of int64 on cpu, got array([0]) from mine in layer 'fc'. Its type is"
    )
    refused(says, scope=mine)


def test_nothing_is_wrong_where_nothing_grows():
    layer = view_of(torch.ones(3), (1, 3))
    assert checked_places(uniformly, layer, 0).tolist() == []
