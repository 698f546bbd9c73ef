"""Where connections grow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify._src.evolution import growth
from sparsify._src.evolution.growth import checked_places
from sparsify._src.evolution.layer_view import needs_gradient
from sparsify.evolution import (
    by_gradient,
    by_gradient_among,
    feeding_units,
    magnitude,
    mixed,
    saliency,
    sparing_units,
    uniformly,
)
from tests.support.views import random_view, view_of


def with_passes(shape, nnz, batches, draw, seed=0):
    passes = [(draw(batch, shape[0]), draw(batch, shape[1])) for batch in batches]
    return random_view(shape, nnz, seed=seed, passes=passes)


def integers(*shape):
    return torch.randint(-3, 4, shape).float()


def dense_top(layer, count):
    """What the whole dense gradient would choose: |gradient| of the inactive places, the first among equals."""
    gradient = sum(grad.double().t() @ input.double() for grad, input in layer.passes).abs().flatten()
    gradient[layer.flat] = -1
    return gradient.sort(descending=True, stable=True).indices[:count].sort().values.tolist()


def test_uniform_growth_is_uniform_over_the_inactive_places():
    tally = torch.zeros(16)
    flat = torch.tensor([0, 5, 6, 7, 13])
    for seed in range(4000):
        tally[uniformly(view_of(torch.ones(5), (4, 4), flat, seed=seed), 2)] += 1
    assert (tally[flat] == 0).all()
    expected = 4000 * 2 / 11
    assert ((tally - expected) ** 2 / expected)[tally > 0].sum() < 31.3  # chi squared, 10 degrees, p = 0.0005


@given(
    st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 40),
    st.data(),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_growth_by_gradient_is_the_top_of_the_dense_gradient_ties_included(outs, ins, batches, tile, data):
    torch.manual_seed(outs * 100 + ins)
    nnz = data.draw(st.integers(1, outs * ins))
    count = data.draw(st.integers(0, outs * ins - nnz))
    layer = with_passes((outs, ins), nnz, batches, integers)  # small whole numbers: exact sums, and many ties
    before, growth.TILE = growth.TILE, tile
    try:
        places = by_gradient(layer, count) if count else torch.empty(0)
    finally:
        growth.TILE = before
    assert places.tolist() == dense_top(layer, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_growth_by_gradient_of_a_large_layer(dtype, monkeypatch):
    monkeypatch.setattr(growth, "TILE", 5000)  # 16 rows at a time
    layer = with_passes((200, 300), 3000, [32, 17], lambda *shape: integers(*shape).to(dtype))
    assert by_gradient(layer, 1500).tolist() == dense_top(layer, 1500)


def test_growth_by_gradient_never_holds_the_dense_gradient():
    layer = with_passes((2048, 1024), 20_000, [4], torch.randn)
    largest, original = [], torch.mm

    def watched(*args):
        found = original(*args)
        largest.append(found.numel())
        return found

    torch.mm, before = watched, growth.TILE
    growth.TILE = 1 << 16
    try:
        assert len(by_gradient(layer, 6000)) == 6000
    finally:
        torch.mm, growth.TILE = original, before
    assert len(largest) == 32
    assert max(largest) == 1 << 16


def test_gradients_that_are_not_finite_grow_somewhere_inactive():
    layer = with_passes((6, 5), 10, [3], torch.randn)
    layer.passes[0][0][1, 2] = torch.nan
    layer.passes[0][1][0, 3] = torch.inf
    places = by_gradient(layer, 20)
    assert sorted([*places.tolist(), *layer.flat.tolist()]) == list(range(30))
    nowhere = replace(layer, sum_over_ranks=lambda sums: sums.mul_(torch.nan))  # as of ranks with inf and -inf
    assert sorted([*by_gradient(nowhere, 20).tolist(), *layer.flat.tolist()]) == list(range(30))


def test_among_candidates_the_best_gradients_win():
    layer = with_passes((30, 40), 100, [8], torch.randn)
    everywhere = by_gradient_among(11)(layer, 100)  # all 1100 free places are candidates
    assert everywhere.tolist() == dense_top(layer, 100)
    few = by_gradient_among(3)(layer, 100)
    assert len(few.unique()) == 100
    assert not set(few.tolist()) & set(layer.flat.tolist())
    gradient = sum(grad.t() @ input for grad, input in layer.passes).abs().flatten()
    random = uniformly(layer, 100)
    assert gradient[random].mean() < gradient[few].mean() < gradient[everywhere].mean()
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        by_gradient_among(0)


def test_mixed_growth_takes_a_share_of_each():
    layer = with_passes((30, 40), 100, [8], torch.randn)
    places = mixed(by_gradient, uniformly, share=0.25)(layer, 40)
    assert set(dense_top(layer, 10)) <= set(places.tolist())
    assert len(places.unique()) == 40
    assert (torch.diff(places) > 0).all()
    assert not set(places.tolist()) & set(layer.flat.tolist())
    assert mixed(by_gradient, uniformly, share=1.0)(layer, 40).tolist() == dense_top(layer, 40)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2"):
        mixed(by_gradient, uniformly, share=2)


def test_a_share_that_rounds_to_nothing_grows_by_the_other_rule():
    passes = [(torch.randn(4, 5), torch.randn(4, 7))]
    layer = random_view((5, 7), 9, passes=passes)
    assert len(mixed(by_gradient, uniformly, share=0.1)(layer, 3)) == 3
    assert len(by_gradient(layer, 0)) == 0


@pytest.mark.parametrize("rule", [by_gradient, by_gradient_among(3)])
def test_ranks_that_add_up_their_scores_grow_as_one_with_all_passes(rule, monkeypatch):
    monkeypatch.setattr(growth, "TILE", 40)  # several tiles
    passes = [(torch.randn(4, 10, dtype=torch.float64), torch.randn(4, 14, dtype=torch.float64)) for _ in range(2)]
    sent = []

    def layer(passes, sum_over_ranks):
        return replace(random_view((10, 14), 30), passes=passes, sum_over_ranks=sum_over_ranks)

    def keep(tensor):
        sent.append(tensor.clone())
        return tensor

    rule(layer(passes[1:], keep), 20)
    others = iter(sent)
    assert torch.equal(
        rule(layer(passes[:1], lambda own: own.add_(next(others))), 20), rule(layer(passes, lambda own: own), 20)
    )
    assert next(others, None) is None


def test_which_rules_need_gradients():
    needing = (
        by_gradient,
        saliency,
        by_gradient_among(2),
        mixed(uniformly, by_gradient, share=0.5),
        feeding_units(by_gradient),
    )
    assert all(map(needs_gradient, (*needing, sparing_units(saliency))))
    others = uniformly, magnitude, mixed(uniformly, uniformly, share=0.5), feeding_units(), sparing_units()
    assert not any(map(needs_gradient, others))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: by_gradient_among(True), TypeError, "candidates must be a whole number, got True"),
        (lambda: by_gradient_among(2.0), TypeError, "candidates must be a whole number, got 2.0"),
        (lambda: by_gradient_among(torch.nan), TypeError, "candidates must be a whole number, got nan"),
        (lambda: by_gradient_among("3"), TypeError, "candidates must be a whole number, got '3'"),
        (lambda: mixed(by_gradient, uniformly, share=True), TypeError, r"share must be a number in \[0, 1\], got True"),
        (
            lambda: mixed(by_gradient, uniformly, share="0.5"),
            TypeError,
            r"share must be a number in \[0, 1\], got '0.5'",
        ),
        (lambda: mixed(by_gradient, uniformly, share=torch.nan), ValueError, r"share must be in \[0, 1\], got nan"),
        (
            lambda: mixed(by_gradient, uniformly, share=50),
            ValueError,
            r"share must be in \[0, 1\], got 50. For 50 % pass 0.5.",
        ),
        (
            lambda: mixed(by_gradient, "uniformly", share=0.5),
            TypeError,
            "second must be a growth rule .*, got 'uniformly'",
        ),
        (lambda: mixed(None, uniformly, share=0.5), TypeError, "first must be a growth rule .*, got None"),
        (lambda: feeding_units("uniformly"), TypeError, "rule must be a growth rule .*, got 'uniformly'"),
    ],
)
def test_options_of_growth_rules_are_checked_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


@given(st.integers(1, 12), st.integers(1, 6), st.data())
@settings(deadline=None, max_examples=150)
def test_feeding_gives_each_empty_unit_one_input(outs, ins, data):
    nnz = data.draw(st.integers(1, outs * ins))
    layer = random_view((outs, ins), nnz)
    gone = data.draw(st.sets(st.integers(0, nnz - 1)))
    layer.survives[list(gone)] = False
    count = data.draw(st.integers(0, layer.free))
    places = feeding_units()(layer, count)
    assert len(places) == count
    assert (torch.diff(places) > 0).all()
    assert not set(places.tolist()) & set(layer.flat.tolist())
    active = (layer.flat // ins).tolist()
    fed = set((layer.flat[layer.survives] // ins).tolist())
    empty = {row for row in range(outs) if row not in fed and active.count(row) < ins}
    assert len(empty & set((places // ins).tolist())) == min(count, len(empty)), "as many as the count allows"


def test_without_a_kept_pass_the_error_says_what_to_do():
    with pytest.raises(ValueError, match=r"got none kept for layer 'layer'.*interval=None"):
        checked_places(by_gradient, view_of(torch.ones(3)), 2)
