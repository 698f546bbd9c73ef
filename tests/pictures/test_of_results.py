import numpy as np
import pytest

from sparsify import plot

RESULTS = {
    "dense": {1.0: [98.0, 98.4]},
    "SET": {0.1: [97.0, 97.2], 0.01: [94.0, 95.0]},
    "RigL": {0.1: [97.5, 97.5]},
}


def test_accuracy_shows_mean_and_spread_and_dense_as_a_level():
    axes = plot.accuracy(RESULTS)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["dense: 98.20 %", "SET", "RigL"]
    assert list(axes.get_lines()[0].get_ydata()) == pytest.approx([98.2, 98.2])
    line, _, (bars,) = axes.containers[0]
    assert list(line.get_xdata()) == [0.01, 0.1]
    assert list(line.get_ydata()) == pytest.approx([94.5, 97.1])
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, [2 * 0.5**0.5, 2 * 0.02**0.5])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.1"]


def test_the_axis_is_never_shorter_than_five_points():
    low, high = plot.accuracy({"SET": {0.1: [60.0], 0.2: [60.2]}}).get_ylim()
    assert high - low == pytest.approx(5)
    assert low < 60 < high
    low, high = plot.accuracy({"SET": {0.1: [20.0], 0.2: [90.0]}}).get_ylim()
    assert low < 20 < 90 < high
    assert plot.accuracy({"SET": {0.1: [0.0], 0.2: [2.0]}}).get_ylim() == (0, 5)


def test_accuracy_refuses_densities_and_shares():
    with pytest.raises(ValueError, match=r"^density must be in \(0, 1\], got 5"):
        plot.accuracy({"SET": {5: [97.0]}})
    with pytest.raises(ValueError, match=r"^results must be in percent, got 0.97 at most"):
        plot.accuracy({"SET": {0.5: [0.97]}})
    with pytest.raises(ValueError, match=r"^results must hold"):
        plot.accuracy({})


def test_speed_marks_where_dense_is_as_fast():
    axes = plot.speed({"small": {0.5: 0.5, 0.1: 2.0}, "large": {0.1: 4.0, 0.2: 2.0}})
    level, small, cross, large = axes.get_lines()
    assert set(level.get_ydata()) == {1}
    assert list(small.get_xdata()) == [0.1, 0.5]
    assert cross.get_xdata()[0] == pytest.approx((0.1 * 0.5) ** 0.5), "half way, on log axes"
    assert cross.get_ydata()[0] == 1
    assert list(large.get_ydata()) == [4, 2]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["small: as fast as dense at 0.22", "large"]


def test_speed_takes_one_curve_without_a_name():
    axes = plot.speed({0.1: 4.0, 0.2: 2.0})
    assert axes.get_legend() is None
    assert axes.get_lines()[1].get_ydata().tolist() == [4, 2]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({}, "results must map densities to factors"),
        ({"a": {}}, "results must hold a factor for each name, got none of 'a'"),
        ({0.1: 0.0}, "results must be dense time / sparse time, above 0, got 0.0"),
        ({10: 2.0}, "density must be in"),
    ],
)
def test_speed_refuses(results, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        plot.speed(results)
