"""Of which gradients another one is made."""

import pytest
import torch

from sparsify._src.kernels.shares import are_near, shares


def vectors(count, length=200, dtype=torch.float32):
    return list(torch.randn(count, length, generator=torch.Generator().manual_seed(1)).to(dtype))


def nothing(*parts):
    return torch.zeros_like(parts[0])


def test_a_factor_changes_no_direction():
    (one,) = vectors(1)
    assert are_near(one, 1e-6 * one)
    assert not are_near(one, -one)
    assert not are_near(one, one + 0.01 * vectors(2)[1])
    assert are_near(one, one.bfloat16())


@pytest.mark.parametrize("weights", [(0, 1, 0), (1, 1, 0), (1, 0.5, 0), (1, 0.25, -0.5), (0, 0, -1)])
def test_shares_are_found(weights):
    parts = vectors(3)
    found = shares(parts, parts[2], 7 * sum(w * part for w, part in zip(weights, parts, strict=True)))
    assert found == pytest.approx(weights, abs=1e-4)


def test_equal_shares_are_one_and_no_share_is_zero():
    first, second, third = vectors(3)
    assert shares([first, second, third], third, 0.25 * (first + second)) == [1.0, 1.0, 0.0]


def test_a_small_share_of_a_large_gradient_counts():
    first, second = vectors(2)
    assert shares([first, 1e4 * second], nothing(first), first + second) == pytest.approx([1, 1e-4], rel=1e-3)


def test_of_equal_gradients_it_does_not_matter_which():
    first, second = vectors(2)
    found = shares([first, first, second], second, first)
    assert found[0] + found[1] > 0
    assert found[2] == 0


def test_the_usual_is_the_answer_where_no_other_is_much_better():
    first, second = vectors(2)
    assert shares([second, first], first, first + 1e-2 * vectors(3)[2]) is None
    assert shares([second, first], first, first.clamp(-0.1, 0.1)) is None
    assert shares([second, first], second, first.clamp(-0.1, 0.1)) == [0.0, 1.0]


def test_what_is_made_of_nothing_that_is_there():
    first, second, third = vectors(3)
    assert shares([first, second], nothing(first), third) is None
    assert shares([first, second], nothing(first), first * torch.nan) is None
    assert shares(vectors(30, 30), nothing(first[:30]), third[:30] + 0.1) is not None, "thirty make anything"
    assert shares(vectors(20, 30), nothing(first[:30]), vectors(21, 30)[20]) is None


def test_more_than_there_are_numbers_tell_nothing():
    parts = vectors(6, 4)
    assert shares(parts, parts[0], parts[0].clamp(-0.3, 0.3)) is None
