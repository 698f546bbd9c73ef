"""Drop rules, and what they spare."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify import Evolution
from sparsify._src.evolution.drop import spared_by
from sparsify._src.evolution.layer_view import needs_gradient
from sparsify._src.evolution.update import propose_updates
from sparsify._src.native import library
from sparsify.evolution import (
    across_layers,
    cubic,
    feeding_units,
    magnitude,
    per_layer,
    per_sign,
    saliency,
    sparing_units,
)
from tests.support.comparing import assert_same
from tests.support.views import random_view, view_of

nan, inf = torch.nan, torch.inf


def test_saliency_is_value_times_gradient():
    layer = view_of([1.0, -2.0, 3.0], gradient=torch.tensor([-4.0, 0.5, 0.0]))
    assert saliency(layer).tolist() == [4.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 2.0, 0.5, 3.0, 4.0], [1, 2, 4]),
        ([2.0, 2.0, 0.0, -1.0, -1.0], [0, 2, 3]),  # among equals the first
        ([nan, inf, nan, inf, nan], [0, 2, 4]),  # NaN is above all
        ([inf, nan, -inf, nan, nan], [1, 2, 3]),
        ([-inf, -inf, -inf, 0.0, -0.0], [0, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_sparing_units_spares_the_best_connection_of_each_unit(scores, expected, dtype):
    layer = view_of([1.0, -2.0, 0.5, 3.0, 4.0], (4, 3), [0, 2, 4, 9, 11])  # units 0, 0, 1, 3, 3; unit 2 has none
    scores = torch.tensor(scores, dtype=dtype)
    assert sparing_units().spares(layer, scores).nonzero().flatten().tolist() == expected


def test_sparing_units_scores_as_its_rule_does():
    layer = view_of([1.0, -2.0, 0.5, 3.0, 4.0], (4, 3), [0, 2, 4, 9, 11])
    assert sparing_units()(layer).tolist() == magnitude(layer).tolist()


def test_sparing_units_is_a_plain_value():
    assert repr(sparing_units(saliency)) == "sparing_units(saliency)"
    assert sparing_units() == sparing_units(magnitude) != sparing_units(saliency)
    assert pickle.loads(pickle.dumps(sparing_units(saliency))) == sparing_units(saliency)
    assert needs_gradient(sparing_units(saliency))
    assert not needs_gradient(sparing_units())
    assert repr(Evolution(interval=5, drop=sparing_units())) == "Evolution(interval=5, drop=sparing_units())"
    with pytest.raises(TypeError, match=r"rule must be a drop rule such as magnitude, .*, got 'magnitude'"):
        sparing_units("magnitude")


class Scored:
    """A drop rule with these scores, that spares these positions."""

    def __init__(self, scores, spared=()):
        self.scores, self.spared = torch.as_tensor(scores), list(spared)

    def __call__(self, layer):
        return self.scores

    def spares(self, layer, scores):
        spared = torch.zeros(len(scores), dtype=torch.bool)
        spared[self.spared] = True
        return spared


def test_a_rule_of_the_user_s_may_spare_alone_or_within_sparing_units():
    layer, rule = view_of([1.0, 2.0, 3.0, 4.0], (2, 2), range(4)), Scored([1.0, 2.0, 3.0, 4.0], [0])
    assert spared_by(rule, layer, rule(layer)).tolist() == [True, False, False, False]
    assert spared_by(sparing_units(rule), layer, rule(layer)).tolist() == [True, True, False, True]
    assert spared_by(magnitude, layer, magnitude(layer)) is None
    layer = view_of([1.0, 2.0, 3.0, 4.0], (2, 4), [0, 1, 4, 5])
    [update] = propose_updates(Evolution(interval=None, drop=rule, scope=per_layer), [layer], [0], 0.5)
    assert update.kept.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("scope", "fraction", "surplus", "kept"),
    [
        (per_layer, 1.0, 0, [1, 3]),  # as many as may go, and as many grow
        (per_layer, 0.0, 5, [1, 3]),
        (per_layer, 0.5, 0, [1, 3, 5]),  # the fraction is of all, spared or not
        (per_sign, 1.0, 0, [1, 3]),
        (per_sign, 0.5, 0, [1, 3, 4]),  # one of each sign
        (per_sign, 0.0, 6, [1, 3]),
        (across_layers, 1.0, 0, [1, 3]),
        (across_layers, 0.0, 6, [1, 3]),
    ],
)
def test_what_is_spared_stays_whatever_is_asked_for(scope, fraction, surplus, kept):
    layer = view_of([0.0, 0.0, 1.0, -1.0, 2.0, -2.0], (6, 10), range(0, 60, 10))
    rule = Scored([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], [1, 3])
    [update] = propose_updates(Evolution(interval=None, drop=rule, scope=scope), [layer], [surplus], fraction)
    assert update.kept.tolist() == kept
    assert len(update.flat) == 6 - min(surplus, 4)


NUMBERS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, inf, -inf, nan]), st.floats(-2, 2, width=32))


@st.composite
def layers(draw):
    """A layer with scores and values of all kinds, and a surplus of it; and what the user's rule spares."""
    outs, ins = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    layer = random_view((outs, ins), draw(st.integers(1, outs * ins)), seed=draw(st.integers(0, 9)))
    nnz = len(layer.flat)
    values, scores = (draw(st.lists(NUMBERS, min_size=nnz, max_size=nnz)) for _ in range(2))
    spared = draw(st.sets(st.integers(0, nnz - 1)))
    values = [nan if score != score else value for value, score in zip(values, scores, strict=True)]
    return replace(layer, values=torch.tensor(values)), scores, spared, draw(st.integers(-nnz, 2 * nnz))


@given(st.lists(layers(), min_size=1, max_size=4), st.floats(0, 1), st.sampled_from(["nothing", "user's", "units"]))
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("scope", [per_layer, per_sign, across_layers])
def test_spared_connections_stay_and_the_books_are_right(scope, cases, fraction, sparing):
    seen = [replace(layer, name=str(number)) for number, (layer, *_) in enumerate(cases)]
    surplus = [more for *_, more in cases]
    rules = {
        str(n): Scored(scores, spared if sparing == "user's" else ()) for n, (_, scores, spared, _) in enumerate(cases)
    }

    class Rule(Scored):
        def __init__(self):
            pass

        def __call__(self, layer):
            return rules[layer.name](layer)

        def spares(self, layer, scores):
            return rules[layer.name].spares(layer, scores)

    rule = sparing_units(Rule()) if sparing == "units" else Rule()
    spared = [rule.spares(layer, rule(layer)) for layer in seen]

    def run():
        for layer in seen:
            layer.generator.manual_seed(0)
        return propose_updates(Evolution(interval=None, drop=rule, scope=scope), seen, surplus, fraction)

    updates = run()
    for layer, stays, update in zip(seen, spared, updates, strict=True):
        assert set(stays.nonzero().flatten().tolist()) <= set(update.kept.tolist())
        assert (torch.diff(update.flat) > 0).all()
        assert not set(update.grown.tolist()) & set(layer.flat.tolist())
        if sparing == "units":
            units = [set((flat // layer.shape[1]).tolist()) for flat in (layer.flat, layer.flat[update.kept])]
            assert units[0] == units[1]
        if scope is across_layers:
            assert len(update.kept) > 0
    lost = [update.old_nnz - len(update.flat) for update in updates]
    may_go = [int((~stays).sum()) for stays in spared]
    if scope is across_layers:
        may_go = [min(count, len(layer.flat) - 1) for count, layer in zip(may_go, seen, strict=True)]
        assert sum(lost) == min(max(0, sum(surplus)), sum(may_go))
    else:
        assert lost == [min(max(0, more), count) for more, count in zip(surplus, may_go, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "LIBRARY", None)
        assert_same(updates, run())


def evolving(algorithm, layers, evolutions, surplus=lambda number, counts: [0] * len(counts)):
    """The layers after each of many evolutions; grown values are 1 in the first layer and larger in the next ones."""
    yield layers
    for number in range(evolutions):
        updates = propose_updates(algorithm, layers, surplus(number, [len(layer.flat) for layer in layers]), 0.3)
        layers = [
            replace(
                layer,
                flat=update.flat,
                values=update.move(layer.values, torch.full((len(update.grown),), 10.0**size)),
                survives=torch.ones(len(update.flat), dtype=torch.bool),
            )
            for size, (layer, update) in enumerate(zip(layers, updates, strict=True))
        ]
        yield layers


def no_order(layer):
    return torch.full_like(layer.values, inf)


@pytest.mark.parametrize("drop", [magnitude, no_order, sparing_units(), sparing_units(no_order)])
@pytest.mark.parametrize(("weak", "strong"), [(0.0, 1.0), (1.0, inf), (inf, nan), (nan, nan)])
def test_across_layers_no_layer_dies_in_a_hundred_evolutions(drop, weak, strong):
    first, second = (random_view((8, 16), 16, seed=seed) for seed in range(2))
    start = [replace(first, values=torch.full((16,), weak)), replace(second, values=torch.full((16,), strong))]
    fed = [set((layer.flat // 16).tolist()) for layer in start]
    for layers in evolving(Evolution(interval=None, drop=drop, scope=across_layers), start, 100):
        counts = [len(layer.flat) for layer in layers]
        assert sum(counts) == 32
        assert min(counts) >= 1
        if isinstance(drop, sparing_units):
            assert all(units <= set((layer.flat // 16).tolist()) for layer, units in zip(layers, fed, strict=True))


@pytest.mark.parametrize("scope", [per_layer, per_sign, across_layers])
def test_pruning_stops_above_a_target_that_would_starve_units(scope):
    algorithm = Evolution(interval=1, drop=sparing_units(), scope=scope, grow=feeding_units())
    layers, schedule = [random_view((8, 16), 64, seed=seed) for seed in range(2)], cubic(1.0, 10)

    def surplus(number, counts):
        return [count - round(2 + schedule(number + 1) * 62) for count in counts]

    fed = sum(len((layer.flat // 16).unique()) for layer in layers)
    *_, end = evolving(algorithm, layers, 15, surplus)
    assert 4 < sum(len(layer.flat) for layer in end) == fed
