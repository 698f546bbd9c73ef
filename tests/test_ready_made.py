"""An argument that takes a rule says at once what is no rule of its kind, and names those that are ready-made."""

from functools import partial
from importlib import import_module
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from sparsify import (
    GMP,
    SET,
    Evolution,
    GraNet,
    RigL,
    coin,
    constant,
    cosine,
    epsilon,
    evolution,
    sparsify,
    uniform,
    zeros,
)
from sparsify._src.ready_made import (
    DENSITY,
    DISTRIBUTION,
    DROP,
    GROW,
    GROWN_VALUES,
    INTERVAL,
    KINDS,
    SCHEDULE,
    SCOPE,
    check_rule,
)
from sparsify.evolution import (
    across_layers,
    by_gradient,
    by_gradient_among,
    feeding_units,
    magnitude,
    mixed,
    per_layer,
    ramp,
    sparing_units,
    uniformly,
)
from tests.support.models import mlp

ARGUMENTS = {
    "grow": GROW,
    "drop": DROP,
    "scope": SCOPE,
    "drop_fraction": SCHEDULE,
    "interval": INTERVAL,
}
NOT_RULES = {"LayerView", "needing_gradient", "Evolution", "SET", "RigL", "GMP", "GraNet", "Static"}


def made(**option):
    return Evolution(**{"interval": 5, **option})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_what_errors_name_is_there_and_is_written_so(kind):
    home = import_module(kind.home)
    for name, call in kind.ready.items():
        rule = eval(call, {**vars(evolution), **vars(home)})
        assert hasattr(home, name)
        check_rule("it", rule, kind)
        assert isinstance(getattr(home, name), type) == (call != name)


def test_every_ready_made_rule_is_of_a_kind():
    of_a_kind = {name for kind in KINDS for name in kind.ready}
    assert set(evolution.__all__) - NOT_RULES <= of_a_kind
    assert sum(len(kind.ready) for kind in KINDS) == len(of_a_kind), "none is of two"


@pytest.mark.parametrize(
    ("argument", "text", "nearest"),
    [
        ("grow", "uniform", "grow=uniformly"),
        ("grow", "random", "grow=uniformly"),
        ("grow", "gradient", "grow=by_gradient"),
        ("grow", "nonsense", "grow=uniformly"),
        ("drop", "magnitude", "drop=magnitude"),
        ("drop", "Magnitude", "drop=magnitude"),
        ("drop", "sparing_units", r"drop=sparing_units\(\)"),
        ("scope", "layer", "scope=per_layer"),
        ("scope", "global", "scope=across_layers"),
        ("scope", "per-sign", "scope=per_sign"),
        ("drop_fraction", "cosine", r"drop_fraction=cosine\(0.3, 45_000\)"),
        ("drop_fraction", "", r"drop_fraction=cosine\("),
        ("interval", "coin", r"interval=coin\(0.05\)"),
    ],
)
def test_a_name_is_refused_with_the_function_that_it_names(argument, text, nearest):
    with pytest.raises(TypeError, match=rf"^{argument} must be .* such as .*, got '{text}'\. Pass .*; {nearest}"):
        made(**{argument: text})


@pytest.mark.parametrize(
    ("argument", "kind", "call"),
    [
        ("grow", by_gradient_among, r"grow=by_gradient_among\(8\)"),
        ("grow", feeding_units, r"grow=feeding_units\(\)"),
        ("grow", mixed, r"grow=mixed\(by_gradient, uniformly, share=0.5\)"),
        ("drop", sparing_units, r"drop=sparing_units\(\)"),
        ("interval", coin, r"interval=coin\(0.05\)"),
        ("drop_fraction", cosine, r"drop_fraction=cosine\(0.3, 45_000\)"),
        ("drop_fraction", ramp, r"drop_fraction=ramp\("),
        ("drop", nn.ReLU, r"drop=ReLU\(\.\.\.\)"),
    ],
)
def test_a_class_is_refused_with_its_call(argument, kind, call):
    with pytest.raises(TypeError, match=rf"got the class {kind.__name__}\. Call it: {call}"):
        made(**{argument: kind})


@pytest.mark.parametrize("kind", [SET, torch.dtype, int])
def test_a_class_of_something_else_is_not_to_be_called(kind):
    with pytest.raises(TypeError, match=rf"got the class {kind.__name__}\. .*; grow=uniformly\."):
        made(grow=kind)


def of_no_option(n):
    return lambda layer, count: None


def named_only(layer, *, count):
    return None


@pytest.mark.parametrize(
    ("argument", "rule", "says"),
    [
        ("grow", magnitude, "got magnitude, a drop rule"),
        ("grow", sparing_units(), r"got sparing_units\(\), a drop rule"),
        ("drop", uniformly, "got uniformly, a growth rule"),
        ("drop", per_layer, "got per_layer, a scope"),
        ("scope", magnitude, "got magnitude, a drop rule"),
        ("interval", cosine(0.3, 100), r"got cosine\(0.3, 100\), a schedule"),
        ("drop_fraction", coin(0.1), r"got coin\(0.1\), a function of the step"),
        ("grow", uniform, "got uniform, a distribution"),
        (
            "grow",
            of_no_option,
            r"grow must take \(layer, count\), got of_no_option\(n\)\. If that makes the rule, call it",
        ),
        ("grow", named_only, r"grow must take \(layer, count\), got named_only\(layer, \*, count\)"),
        ("drop", lambda: None, r"drop must take \(layer\), got <lambda>\(\)"),
        ("scope", lambda layers, scores: None, r"scope must take \(layers, scores, excess, fraction\)"),
        ("drop_fraction", lambda: 0.3, r"drop_fraction must take \(step\)"),
        ("interval", lambda step, more: True, r"interval must take \(step\)"),
        ("drop", SET(), r"got SET\(\)\. "),
        ("grow", None, r"got None\. Pass a function of \(layer, count\): from sparsify.evolution import uniformly"),
        ("scope", ["per_sign"], r"got \['per_sign'\]\. "),
        ("drop_fraction", [0.3], r"drop_fraction must be a number in \[0, 1\], got \[0.3\]"),
        ("drop_fraction", "0.3", r"got '0.3'\. Pass the number itself: drop_fraction=0.3"),
        ("interval", "100", r"interval must be a whole number of optimizer steps, got '100'\. Pass the number itself"),
    ],
)
def test_what_is_no_rule_of_the_kind_is_refused(argument, rule, says):
    with pytest.raises(TypeError, match=says):
        made(**{argument: rule})


@pytest.mark.parametrize(
    "make",
    [
        lambda: RigL(grow="by_gradient"),
        lambda: GraNet(until=9, scope="across_layers"),
        lambda: GMP(until=9, scope="layer"),
        lambda: sparsify(mlp(4, 4), None, 0.5, grown_values="zeros"),
        lambda: sparsify(mlp(4, 4), None, 0.5, grown_values=uniform),
        lambda: RigL(drop_fraction="cosine"),
        lambda: Evolution(interval=5, start_density=0.5, surplus="cubic"),
        lambda: sparing_units("magnitude"),
        lambda: sparing_units(uniformly),
        lambda: feeding_units(by_gradient_among),
        lambda: feeding_units(magnitude),
        lambda: mixed(by_gradient, uniform, share=0.5),
        lambda: mixed(by_gradient_among, uniformly, share=0.5),
        lambda: constant("0.3"),
        lambda: cosine("0.3", 100),
        lambda: ramp(0.3, 100, end=None),
    ],
)
def test_so_do_all_that_take_rules(make):
    with pytest.raises(TypeError, match="must be "):
        make()


class Rule:
    def __init__(self, least=0):
        self.least = least

    def __call__(self, layer, count=0):
        return None

    def also(self, layer, count):
        return None


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (GROW, lambda layer, count: None),
        (GROW, lambda layer, count, more=0: None),
        (GROW, lambda *arguments: None),
        (GROW, lambda layer, *others, **options: None),
        (GROW, Rule()),
        (GROW, Rule().also),
        (GROW, partial(Rule().also)),
        (GROW, partial(lambda least, layer, count: None, 3)),
        (GROW, partial(by_gradient)),
        (GROW, Mock()),
        (DROP, Rule()),
        (DROP, torch.abs),
        (DROP, nn.ReLU()),
        (INTERVAL, {3, 5}.__contains__),
        (SCOPE, partial(across_layers)),
        (GROWN_VALUES, zeros),
        (DISTRIBUTION, uniform),
        (DENSITY, epsilon(20)),
        (DENSITY, lambda shape, more=0: 0.1),
    ],
)
def test_rules_of_every_make_are_taken(kind, rule):
    check_rule("it", rule, kind)
