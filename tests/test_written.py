"""Rules, schedules, distributions and algorithms are plain values: written, compared, hashed, copied and changed."""

import copy
import dataclasses
import inspect
import pickle
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

import sparsify
from sparsify import GMP, SET, Evolution, GraNet, RigL, Static, coin, constant, cosine, epsilon, evolution
from sparsify._src.conversion.report import LayerReport, Report
from sparsify._src.evolution.layer_view import LayerView
from sparsify._src.training.agreement import comparable
from sparsify._src.written import written
from sparsify.evolution import (
    across_layers,
    by_gradient,
    by_gradient_among,
    cubic,
    feeding_units,
    magnitude,
    mixed,
    per_layer,
    ramp,
    saliency,
    sparing_units,
    uniformly,
)
from tests.support.marks import shown

PUBLIC = {name: vars(module)[name] for module in (sparsify, evolution) for name in module.__all__}
"""What `from sparsify import *` and `from sparsify.evolution import *` bring."""

STEPS = {"interval": coin(0.5), "drop_fraction": cosine(0.5, 750, end=0.1), "until": 750}
RULES = {
    "drop": sparing_units(saliency),
    "scope": across_layers,
    "grow": mixed(feeding_units(by_gradient_among(4)), uniformly, share=0.25),
}
PRUNES = Evolution(interval=5, start_density=0.5, surplus=ramp(1.0, 9))
CASES = [
    (constant(0.3), {"value": 0.2}),
    (ramp(0.4, 100), {"start": 0.5, "steps": 99, "end": 0.1, "begin": 10}),
    (cosine(0.3, 45_000), {"start": 0.5, "steps": 99, "end": 0.1, "begin": 10}),
    (cubic(1.0, 300), {"start": 0.5, "steps": 99, "end": 0.1, "begin": 10}),
    (coin(0.05), {"probability": 0.5, "seed": 1}),
    (epsilon(20), {"value": 11}),
    (by_gradient_among(4), {"candidates": 5}),
    (mixed(by_gradient, uniformly, share=0.5), {"first": uniformly, "second": feeding_units(), "share": 1.0}),
    (feeding_units(), {"rule": by_gradient_among(2)}),
    (sparing_units(), {"rule": sparing_units(saliency)}),
    (SET(), {**STEPS}),
    (RigL(until=900), {**STEPS, "grow": by_gradient_among(4)}),
    (GMP(until=900), {"interval": 7, "until": 750, "begin": 5, "start_density": 0.5, "scope": across_layers}),
    (
        GraNet(until=900),
        {**STEPS, "prune_until": 100, "start_density": 0.9, "scope": across_layers, "grow": RULES["grow"]},
    ),
    (Static(), {}),
    (PRUNES, {**STEPS, **RULES, "start_density": 0.75, "surplus": cubic(1.0, 9)}),
]
CHANGED = [(value, name, option) for value, others in CASES for name, option in others.items()]
VALUES = [value for value, _ in CASES]
VALUES += [dataclasses.replace(value, **{name: option}) for value, name, option in CHANGED]


def options(value):
    return [each.name for each in dataclasses.fields(value) if each.init]


def test_every_ready_made_value_and_every_option_is_here():
    kinds = {kind for kind in PUBLIC.values() if dataclasses.is_dataclass(kind)} - {LayerView, LayerReport, Report}
    assert kinds == {type(value) for value, _ in CASES}
    for value, others in CASES:
        assert set(options(value)) == set(others)


@pytest.mark.parametrize("value", VALUES, ids=shown)
def test_a_value_is_what_its_repr_makes(value):
    again = eval(repr(value), dict(PUBLIC))
    assert again is not value
    assert again == value
    assert type(again) is type(value)
    assert hash(again) == hash(value)
    assert repr(again) == repr(value)


@pytest.mark.parametrize("value", VALUES, ids=shown)
def test_copies_are_equal(value):
    pickled = pickle.loads(pickle.dumps(value))
    for again in copy.copy(value), copy.deepcopy(value), pickled, dataclasses.replace(value):
        assert again is not value
        assert again == value
        assert hash(again) == hash(value)
        assert vars(again) == vars(value)


@pytest.mark.parametrize(("value", "name", "option"), CHANGED, ids=shown)
def test_with_another_option_it_is_another(value, name, option):
    other = dataclasses.replace(value, **{name: option})
    assert type(other) is type(value)
    assert getattr(other, name) == option
    assert other != value
    assert comparable(other) != comparable(value)
    assert dataclasses.replace(other, **{name: getattr(value, name)}) == value


@pytest.mark.parametrize("value", VALUES, ids=shown)
def test_a_value_does_not_change(value):
    for each in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, each.name, None)


def test_values_of_two_kinds_differ():
    assert len(set(VALUES)) == len(VALUES)
    assert constant(3) != epsilon(3)
    assert ramp(0.3, 10) != cosine(0.3, 10)
    assert SET(interval=100) != Evolution(interval=100)
    assert isinstance(SET(interval=100), Evolution)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if inspect.isfunction(value)])
def test_functions_are_written_by_their_names(name):
    function = PUBLIC[name]
    assert eval(written(function), dict(PUBLIC)) is function
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function


def test_what_a_user_writes_is_written_as_it_was():
    def mine(layer, count):
        return None

    assert repr(Evolution(interval=5, grow=mine)) == "Evolution(interval=5, grow=mine)"
    assert (
        repr(Evolution(interval=5, grow=partial(mine, 3, to=mine)))
        == "Evolution(interval=5, grow=partial(mine, 3, to=mine))"
    )
    assert repr(sparing_units(lambda layer: None)) == "sparing_units(<lambda>)"


@pytest.mark.parametrize("kind", [SET, RigL, GMP, GraNet, Static], ids=lambda kind: kind.__name__)
def test_fields_and_constructor_of_an_algorithm_agree(kind):
    parameters = inspect.signature(kind).parameters
    fields = {each.name: each for each in dataclasses.fields(kind)}
    assert {name for name, each in fields.items() if each.init} == set(parameters)
    for name, parameter in parameters.items():
        assert repr(parameter.default) == written(fields[name].default)
    assert set(options(Evolution(interval=5))) <= set(fields)


def test_what_is_derived_is_derived_anew():
    assert dataclasses.replace(GMP(until=300, begin=10), until=600).pruning == cubic(1.0, 590, begin=10)
    assert dataclasses.replace(GraNet(until=300), until=600).pruning == cubic(1.0, 400)
    assert dataclasses.replace(GraNet(until=300, prune_until=100), until=600).pruning == cubic(1.0, 100)
    for kind in RigL, GraNet:
        assert dataclasses.replace(kind(until=300), until=600).fraction(200) == cosine(0.3, 600)(200)
    assert dataclasses.replace(RigL(), until=600).fraction(200) == cosine(0.3, 600)(200)
    with pytest.raises(ValueError, match="surplus"):
        dataclasses.replace(GMP(until=300), surplus=cubic(1.0, 9))
    with pytest.raises(ValueError, match="until must be at least 1, got 0"):
        dataclasses.replace(GMP(until=300), until=0)


def everything_of_a_users(shift=0.0):
    """Functions that cannot be pickled, and an object that is equal to itself alone; made anew by each call."""

    class Fraction:
        def __call__(self, step):
            return 0.3 + shift

    def grow(layer, count):
        return uniformly(layer, count)

    by_half = partial(lambda share, layer: layer.values.abs() * share, 0.5)
    return Evolution(
        interval=lambda step: step % 2 == 0,
        drop_fraction=Fraction(),
        until=99,
        drop=sparing_units(by_half),
        grow=mixed(grow, uniformly, share=0.5),
    )


@pytest.mark.parametrize("value", [*VALUES, everything_of_a_users()], ids=shown)
def test_what_ranks_send_can_be_pickled_and_is_equal_where_the_values_are(value):
    again = everything_of_a_users() if value.__class__ is Evolution and value.until == 99 else copy.deepcopy(value)
    told, other = (pickle.loads(pickle.dumps(comparable(each))) for each in (value, again))
    assert told == other == comparable(value)


class ByValue:
    """A rule of a user's who tells when two are equal."""

    def __init__(self, value):
        self.value = value

    def __call__(self, layer):
        return layer.values

    def __eq__(self, other):
        return type(other) is ByValue and other.value == self.value

    def __hash__(self):
        return hash(self.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SET(until=10), SET(until=11)),
        (SET(interval=coin(0.5)), SET(interval=coin(0.5, seed=1))),
        (RigL(until=749), RigL(until=750)),
        (RigL(grow=mixed(by_gradient, uniformly, share=0.5)), RigL(grow=mixed(by_gradient, uniformly, share=0.25))),
        (SET(interval=100), Evolution(interval=100)),
        (sparing_units(magnitude), sparing_units(saliency)),
        (Evolution(interval=5, scope=per_layer), Evolution(interval=5, scope=across_layers)),
        (Evolution(interval=5, drop=magnitude), Evolution(interval=5, drop=ByValue(3))),
        (ByValue(3), ByValue(4)),
        (partial(ByValue(3), layer=2), partial(ByValue(3), layer=3)),
        (partial(magnitude, 1), partial(magnitude, 2)),
        (partial(magnitude), partial(saliency)),
        (constant(0.5), constant(np.float32(0.25))),
        (constant(0.5), constant(Fraction(1, 3))),
        (constant(0.5), lambda step: 0.5),
    ],
    ids=shown,
)
def test_ranks_see_what_differs(one, other):
    assert comparable(one) != comparable(other)
    for each in one, other:
        assert comparable(each) == comparable(copy.deepcopy(each))


@pytest.mark.parametrize(
    "option",
    [torch.ones(3), torch.nan, np.ones(3), [lambda: 0], torch.nn.Linear(2, 2), object(), open],
    ids=shown,
)
def test_what_cannot_be_compared_makes_no_ranks_differ(option):
    told = comparable(partial(magnitude, option))
    assert (pickle.loads(pickle.dumps(told)) == comparable(partial(magnitude, copy.deepcopy(option)))) is True


def test_what_is_equal_to_itself_alone_is_not_pickled_for_ranks():
    class Holding:
        def __reduce__(self):
            pickled.append(self)
            return Holding, ()

    pickled = []
    assert comparable(coin(0.5, seed=Holding())) == comparable(coin(0.5, seed=Holding()))
    assert not pickled
