"""What is told of layers that were not measured."""

import numpy as np
import pytest

from sparsify._src.conversion.figures import (
    BATCHES,
    DENSITIES,
    GRID,
    SIZES,
    Figures,
    Pair,
    filled,
    is_grid,
    joined,
)
from sparsify._src.conversion.places import Place


def grid(training=1.0):
    """Times that follow from an arithmetic: a call, and for each batch entry features and connections."""
    found = np.empty(GRID)
    for s, size in enumerate(SIZES):
        for b, batch in enumerate(BATCHES):
            found[0, s, b, 0] = size**2 * batch
            found[0, s, b, 1:] = [1000 * size * batch + 5 * density * size**2 * batch for density in DENSITIES]
    found[1] = training * found[0]
    return found


FIGURES = Figures(grid(3.0), "made up")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
def test_at_the_nodes_it_is_what_was_measured(size, batch, training):
    times = FIGURES.grid[int(training), SIZES.index(size), BATCHES.index(batch)]
    told = [FIGURES.sparse((size, size), density * size**2, batch, training) for density in DENSITIES]
    assert [FIGURES.dense((size, size), batch, training), *told] == pytest.approx(times)


def test_between_the_nodes_logarithms_are_linear():
    assert FIGURES.dense((700, 700), 50, False) == pytest.approx(700**2 * 50)
    assert FIGURES.dense((350, 1400), 50, True) == pytest.approx(3 * 700**2 * 50)
    sparse = FIGURES.sparse((700, 700), 0.3 * 700**2, 50, False)
    assert sparse == pytest.approx(1000 * 700 * 50 + 5 * 0.3 * 700**2 * 50, rel=0.05)


def test_a_time_is_linear_in_the_connections_and_goes_on_so():
    told = [FIGURES.sparse((1024, 1024), density * 1024**2, 8, False) for density in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert np.diff(told, 2) == pytest.approx(0, abs=1e-6 * told[0])


def test_beyond_the_grid_time_grows_with_batch_and_weights():
    assert FIGURES.dense((1024, 1024), 5120, True) == pytest.approx(10 * FIGURES.dense((1024, 1024), 512, True))
    assert FIGURES.dense((40960, 40960), 8, True) == pytest.approx(100 * FIGURES.dense((4096, 4096), 8, True))
    few = FIGURES.sparse((40960, 40960), 1000, 8, False)
    assert few == pytest.approx(1000 * 40960 * 8, rel=0.01), "features, no connections"
    assert FIGURES.dense((4, 4), 8, True) == FIGURES.dense((32, 32), 8, True), "a call costs what it costs"


def test_a_layer_that_was_measured_is_told_as_measured_and_others_of_its_shape_like_it():
    place = Place(True, 300, 700, 64)
    expected = FIGURES.sparse((300, 700), 21_000, 64, True)
    own = Figures(FIGURES.grid, "", {place: Pair(7.0, {21_000: 3 * expected, 42_000: 2.5})})
    assert own.dense((300, 700), 64, True) == 7
    assert own.sparse((300, 700), 21_000, 64, True) == pytest.approx(3 * expected)
    assert own.sparse((300, 700), 42_000, 64, True) == pytest.approx(2.5)
    assert own.sparse((300, 700), 2100, 64, True) == pytest.approx(3 * FIGURES.sparse((300, 700), 2100, 64, True))
    for shape, batch, training in [((700, 300), 64, True), ((300, 700), 65, True), ((300, 700), 64, False)]:
        assert own.dense(shape, batch, training) == FIGURES.dense(shape, batch, training)


def test_what_was_not_measured_is_as_much_slower_as_elsewhere():
    measured, elsewhere = grid() / 7, grid(2.0)
    measured[:, 4:] = np.nan
    assert filled(measured, elsewhere) == pytest.approx(grid() / 7)


def test_the_ratio_of_later_measurements_counts_not_how_fast_the_machine_was():
    assert joined(None, Pair(2.0, {10: 1.0})) == Pair(2.0, {10: 1.0})
    assert joined(Pair(2.0, {10: 1.0}), Pair(6.0, {20: 1.5})) == Pair(2.0, {10: 1.0, 20: 0.5})


def test_what_is_no_grid_is_seen():
    assert is_grid(grid())
    assert not is_grid(grid()[:1])
    for wrong in (np.nan, np.inf, 0.0, -1.0):
        broken = grid()
        broken[1, 2, 3, 1] = wrong
        assert not is_grid(broken)
