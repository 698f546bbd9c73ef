"""Values and moments that follow the optimizer step."""

import pickle

import pytest

from sparsify.evolution import coin, constant, cosine, cubic, ramp


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.3), {0: 0.3, 10: 0.3, 10**9: 0.3}),
        (ramp(0.4, 100), {0: 0.4, 25: 0.3, 50: 0.2, 100: 0, 1000: 0}),
        (ramp(0.1, 10, end=0.5), {0: 0.1, 5: 0.3, 10: 0.5, 11: 0.5}),
        (cosine(0.3, 1000), {0: 0.3, 250: 0.15 * (1 + 0.5**0.5), 500: 0.15, 1000: 0, 2000: 0}),
        (cosine(0.5, 10, end=0.1), {0: 0.5, 5: 0.3, 10: 0.1, 20: 0.1}),
        (cubic(1.0, 200, begin=100), {0: 1, 100: 1, 200: 0.125, 250: 1 / 64, 300: 0, 400: 0}),
    ],
)
def test_values(schedule, values):
    for step, value in values.items():
        assert schedule(step) == pytest.approx(value, abs=1e-12)
        assert pickle.loads(pickle.dumps(schedule))(step) == schedule(step)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        cosine(0.3, 0)
    with pytest.raises(ValueError, match="begin must be at least 0, got -1"):
        cubic(1.0, 5, begin=-1)
    with pytest.raises(TypeError, match="start must be a number, got None"):
        ramp(None, 5)


def test_coin_falls_with_its_probability_and_the_same_way_each_time():
    flips = [coin(0.05)(step) for step in range(20_000)]
    assert sum(flips) == pytest.approx(1000, abs=150)
    again = pickle.loads(pickle.dumps(coin(0.05)))
    assert flips == [again(step) for step in range(20_000)]
    assert flips != [coin(0.05, seed=1)(step) for step in range(20_000)]
    with pytest.raises(ValueError, match="probability must be in"):
        coin(5)
