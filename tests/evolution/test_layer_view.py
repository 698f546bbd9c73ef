"""A rule that reads gradients without being marked is told so, and by which name."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from sparsify import SET, Evolution, sparsify
from sparsify._src.evolution.drop import checked_scores
from sparsify._src.evolution.layer_view import LayerView
from sparsify.evolution import by_gradient, magnitude, mixed, needing_gradient, per_layer, sparing_units, uniformly
from tests.support.views import view_of

MARK = r"must be marked with needing_gradient to read layer\.{}, got no .* in layer '{}'\. Write @needing_gradient"


def by_sensitivity(layer):
    return layer.values.abs() * layer.gradient.abs()


def by_passes(layer, count):
    gradient = sum(grad.t() @ input for grad, input in layer.passes).abs().flatten()
    gradient[layer.flat] = -1
    return gradient.topk(count).indices.sort().values


def without_gradient(**options):
    """A pair whose layers have no gradient, evolved by hand."""
    model = nn.Sequential(nn.Linear(8, 8))
    model, sgd = sparsify(
        model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3, evolution=Evolution(interval=None, **options)
    )
    return model, sgd


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (by_sensitivity, "by_sensitivity"),
        (lambda layer: layer.gradient.abs(), "<lambda>"),
        (lambda layer: layer.values * layer.gradient, "<lambda>"),
        (lambda layer: getattr(layer, "gradient").abs(), "<lambda>"),  # noqa: B009
        (partial(by_sensitivity), r"partial\(by_sensitivity\)"),
        (sparing_units(by_sensitivity), r"sparing_units\(by_sensitivity\)"),
    ],
)
def test_a_drop_rule_that_is_not_marked(rule, name):
    model, sgd = without_gradient(drop=rule)
    before = model[0].flat()
    with pytest.raises(ValueError, match=f"^{name} {MARK.format('gradient', '0')}"):
        sgd.evolve()
    assert torch.equal(model[0].flat(), before)


@pytest.mark.parametrize("rule", [by_passes, mixed(by_passes, uniformly, share=0.5), partial(by_gradient)])
def test_a_growth_rule_that_is_not_marked(rule):
    model, sgd = without_gradient(grow=rule)
    model(torch.randn(4, 8)).square().sum().backward()
    before = model[0].flat()
    with pytest.raises(ValueError, match=MARK.format("passes", "0")):
        sgd.evolve()
    assert torch.equal(model[0].flat(), before)


@pytest.mark.parametrize("drop", [by_sensitivity, sparing_units(by_sensitivity)])
def test_in_training_too_and_marked_it_is_never_met(drop):
    def train(drop, grow):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        model, sgd = sparsify(model, sgd, 0.3, evolution=Evolution(interval=2, drop=drop, grow=grow))
        for step in range(8):
            sgd.zero_grad()
            hidden = model[0](torch.randn(4, 8))
            (model[1](hidden) if step > 1 else hidden).square().sum().backward()
            sgd.step()
        return sgd.history

    def marked(rule):
        @needing_gradient
        def marked(*arguments):
            return rule(*arguments)

        return marked

    history = train(marked(drop), marked(by_passes))
    assert [set(record.grown) for record in history] == [{"0"}, {"0", "1"}, {"0", "1"}, {"0", "1"}]
    with pytest.raises(ValueError, match=f"^by_passes {MARK.format('passes', '0')}"):
        train(marked(drop), by_passes)


def test_a_scope_that_reads_gradients():
    def mine(layers, scores, excess, fraction):
        return per_layer(layers, [layer.gradient.abs() for layer in layers], excess, fraction)

    _, sgd = without_gradient(scope=mine)
    with pytest.raises(ValueError, match=f"^mine {MARK.format('gradient', '0')}"):
        sgd.evolve()
    model, sgd = without_gradient(scope=needing_gradient(mine))
    with pytest.raises(ValueError, match=r"evolve\(\) must follow a backward pass"):
        sgd.evolve()
    model(torch.randn(4, 8)).square().sum().backward()
    assert sgd.evolve().grown["0"] > 0


def test_a_rule_that_can_do_without_asks_first():
    def mine(layer):
        return by_sensitivity(layer) if layer.has_gradient else magnitude(layer)

    plain, with_one = view_of([1.0, -2.0]), view_of([1.0, -2.0], gradient=torch.tensor([3.0, 0.5]))
    assert checked_scores(mine, plain).tolist() == [1.0, 2.0]
    assert checked_scores(mine, with_one).tolist() == [3.0, 1.0]


def test_an_unmarked_rule_gets_the_gradient_that_is_there():
    layer = view_of([1.0, -2.0], gradient=torch.tensor([3.0, 0.5]))
    assert checked_scores(by_sensitivity, layer).tolist() == [3.0, 1.0]


def test_made_by_hand_it_is_an_ordinary_dataclass():
    alive = torch.ones(2, dtype=torch.bool)
    layer = LayerView("fc", (2, 3), torch.tensor([0, 2]), torch.ones(2), alive, torch.Generator())
    assert not layer.has_gradient
    for read in (lambda: layer.gradient, lambda: layer.passes):
        with pytest.raises(ValueError, match=r"^a rule must be marked with needing_gradient to read layer"):
            read()
    other = replace(layer, name="other")
    assert (other.name, other.has_gradient, "gradient=None, passes=()" in repr(other)) == ("other", False, True)
    given = replace(layer, gradient=torch.ones(2), passes=[(torch.ones(1, 2), torch.ones(1, 3))])
    assert given.gradient.tolist() == [1.0, 1.0]
    assert len(replace(given, name="x").passes) == 1
    assert replace(given, gradient=None).has_gradient is False
    assert copy.copy(given).gradient is given.gradient
    with pytest.raises(AttributeError):
        layer.name = "another"


def test_a_rule_may_use_replace_on_a_layer_without_gradient():
    def mine(layer):
        return magnitude(replace(layer, values=-layer.values))

    assert checked_scores(mine, view_of([1.0, -2.0])).tolist() == [1.0, 2.0]


def test_the_face_and_pickles_are_as_they_were():
    assert pickle.loads(pickle.dumps(SET())) == SET()
    assert "gradient" in LayerView.__dataclass_fields__
