"""Which connections go, given their scores: of each sign, of a layer, of the whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify._src.evolution.scopes import lowest_of_each_sign, share_out
from sparsify.evolution import across_layers, magnitude, per_layer, per_sign
from tests.support.views import random_view, view_of


def dropped(scope, values, fraction, surplus=0, shape=None):
    layer = view_of(values, shape)
    [(positions, grown)] = scope([layer], [magnitude(layer)], [surplus], fraction)
    assert len(positions) == len(set(positions.tolist())) == grown + surplus
    return sorted(layer.values[positions].tolist())


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        # each sign by itself: the strong negatives stay though every positive is weaker
        ([0.1, 0.2, 0.3, 0.4, -5, -6, -7, -8], 0.5, [0.1, 0.2, -5, -6]),
        # one sign has none
        ([0.4, 0.3, 0.2, 0.1], 0.5, [0.2, 0.1]),
        ([-4, -3, -2, -1], 0.25, [-1]),
        # counts are rounded down for each sign
        ([1, 2, 3, -1, -2, -3], 0.5, [1, -1]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.3, [1, 2, 3]),
        ([1, 2], 0.3, []),
        # none and all
        ([1, -2, 3], 0.0, []),
        ([1, -2, 0, 3], 0.0, []),
        ([1, -2, 0, 3], 1.0, [1, -2, 0, 3]),
        # zeros go first, in place of the strongest that would have gone
        ([0, 1, 2, -1, -2], 0.5, [0, 1]),
        ([0, 0, 1, 2, -1, -2], 0.5, [0, 0, 1]),
        ([0, 0, 0, 0, 1, 2, -1, -2], 0.25, [0]),
        ([0, 0, 0, 0, 1, 2, -1, -2], 0.5, [0, 0, 0, 0]),
        ([-0.0, 1, 2], 0.5, [-0.0]),
        ([], 0.5, []),
    ],
)
def test_set_drops_the_weakest_of_each_sign(values, fraction, expected):
    values = torch.tensor(values, dtype=torch.float64)
    assert dropped(per_sign, values, fraction) == sorted(expected)
    assert sorted(values[lowest_of_each_sign(values, values.abs(), fraction)].tolist()) == sorted(expected)


def test_among_equals_the_first_go_first():
    assert lowest_of_each_sign(torch.tensor([2.0, 1.0, 1.0, 1.0]), torch.ones(4), 0.5).tolist() == [0, 1]


def test_where_few_places_are_free_the_weakest_go_whatever_their_sign():
    values = torch.tensor([3.0, 4.0, 5.0, 6.0, -0.1, -0.2, -0.3, -0.4])
    assert dropped(per_sign, values, 0.5, shape=(1, 11)) == pytest.approx([-0.2, -0.1, 3.0])
    assert dropped(per_sign, values, 0.5, shape=(1, 8)) == []
    assert dropped(per_layer, values, 0.5, shape=(1, 9)) == pytest.approx([-0.1])


@given(st.lists(st.floats(-1, 1, width=32), max_size=60), st.floats(0, 1))
@settings(deadline=None, max_examples=200)
def test_per_sign_against_a_plain_reference(values, fraction):
    tensor = torch.tensor(values, dtype=torch.float32)
    chosen = lowest_of_each_sign(tensor, tensor.abs(), fraction).tolist()
    share = [int(fraction * len([v for v in values if sign(v)]) + 1e-9) for sign in SIGNS]
    assert len(chosen) == sum(share)
    zeros_dropped = sum(values[i] == 0 for i in chosen)
    assert zeros_dropped == min(values.count(0), len(chosen))
    for sign in SIGNS[1:]:
        gone = sorted(abs(values[i]) for i in chosen if sign(values[i]))
        assert gone == sorted(abs(v) for v in values if sign(v))[: len(gone)]
    if values.count(0) == 0:
        assert sum(values[i] > 0 for i in chosen) == share[1]


SIGNS = (lambda v: v == 0, lambda v: v > 0, lambda v: v < 0)


def test_per_layer_drops_the_lowest_scores_whatever_their_sign():
    assert dropped(per_layer, [0.1, 0.2, 0.3, 0.4, -5.0, -6.0, -7.0, -8.0], 0.5) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert dropped(per_layer, [3.0, -2.0, 1.0], 0.34) == [1.0]


@pytest.mark.parametrize("scope", [per_layer, per_sign])
def test_the_surplus_goes_first_and_the_fraction_is_of_the_rest(scope):
    values = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0]
    gone = {per_layer: [1, -2, 3, -4, 5, -6], per_sign: [1, -2, 3, -4, 5, -6]}[scope]
    assert dropped(scope, values, 0.0, surplus=2) == [-2, 1]
    assert dropped(scope, values, 0.5, surplus=2) == sorted(gone)


def scored(*score_lists):
    layers = [view_of(scores) for scores in score_lists]
    return layers, [layer.values for layer in layers]


def test_across_layers_the_weakest_of_all_go_and_growth_follows_what_survives():
    layers, scores = scored([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    (first, first_grown), (second, second_grown) = across_layers(layers, scores, [0, 0], 0.3)
    assert first.tolist() == [0, 1, 2], "the weakest three are all in the first layer"
    assert second.tolist() == []
    assert (first_grown, second_grown) == (0, 3), "shared in proportion to the survivors, 1 and 6"


def test_across_layers_no_layer_loses_its_last_connection():
    layers, scores = scored([1.0, 2.0], [10.0, 20.0, 30.0, 40.0])
    (first, _), (second, _) = across_layers(layers, scores, [1, 3], 0.0)
    assert first.tolist() == [0]
    assert second.tolist() == [0, 1, 2], "the surplus is the model's"


def test_across_layers_growth_that_does_not_fit_goes_to_the_others():
    full = view_of([5.0, 6.0, 7.0, 8.0], shape=(1, 5))
    other = view_of([1.0, 2.0, 3.0, 4.0])
    choices = across_layers([full, other], [full.values, other.values], [0, 0], 0.5)
    assert [grown for _, grown in choices] == [1, 3]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40)), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_are_whole_bounded_and_exact(parts, fraction):
    weights, most = zip(*parts, strict=True)
    total = int(fraction * sum(most))
    shares = share_out(total, weights, most)
    assert sum(shares) == total
    assert all(0 <= share <= limit for share, limit in zip(shares, most, strict=True))
    if sum(weights) and all(limit >= total for limit in most):
        assert all(abs(s - total * w / sum(weights)) < 1 + 1e-9 for s, w in zip(shares, weights, strict=True))


def test_shares_beyond_what_fits_are_refused():
    with pytest.raises(ValueError, match="total must be at most 3, got 4"):
        share_out(4, [1, 1], [1, 2])


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
    st.sampled_from([0, 9]),
)
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("scope", [per_sign, per_layer, across_layers])
def test_every_scope_keeps_the_books(scope, sizes, extra, fraction, seed, lacking):
    layers = [random_view((6, 5), nnz, seed=seed + number) for number, nnz in enumerate(sizes)]
    surplus = [int(extra * (nnz - 1)) for nnz in sizes]
    surplus[0] -= lacking
    choices = scope(layers, [magnitude(layer) for layer in layers], surplus, fraction)
    for layer, (positions, grown) in zip(layers, choices, strict=True):
        assert len(positions.unique()) == len(positions) <= len(layer.values)
        assert 0 <= grown <= layer.free
    lost = [len(positions) - grown for positions, grown in choices]
    if scope is across_layers:
        assert sum(lost) == max(0, sum(surplus))
    else:
        assert lost == [max(0, more) for more in surplus]
