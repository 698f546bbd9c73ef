import pytest
from matplotlib import pyplot

from sparsify import plot
from tests.support.records import history, layer_record, record


def points(line):
    return dict(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_explored_draws_a_line_for_each_layer_in_percent():
    axes = plot.explored(history())
    first, second = axes.get_lines()
    assert points(first) == pytest.approx({10: 10, 20: 15, 30: 17.5})
    assert points(second) == pytest.approx({20: 40, 30: 50})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_ylim()[0] == 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "places ever active (%)")


def test_no_tick_says_more_than_a_hundred_percent():
    whole = [record(step, a=layer_record(0.3, 1.0, 1.0)) for step in (1, 2)]
    for draw in plot.explored, plot.turnover:
        ticks = draw(whole).get_yticks()
        assert ticks.max() == 100
        assert len(ticks) > 3


def test_lines_differ_in_grey():
    first, second = plot.explored(history()).get_lines()
    assert (first.get_linestyle(), first.get_marker()) != (second.get_linestyle(), second.get_marker())


def test_turnover_draws_what_survived_where_the_record_tells():
    axes = plot.turnover(history())
    a, b, a_survived, b_survived = axes.get_lines()
    assert points(a) == pytest.approx({10: 30, 20: 20, 30: 10})
    assert points(b) == pytest.approx({20: 30, 30: 20})
    assert points(a_survived) == pytest.approx({20: 50, 30: 75})
    assert points(b_survived) == pytest.approx({30: 25})
    assert tuple(a.get_color()) == tuple(a_survived.get_color())


def test_where_nothing_survived_the_line_is_at_zero():
    records = [record(1, a=layer_record(0.3, 0.0, 0.1)), record(2, a=layer_record(0.3, 0.5, 0.1))]
    _, survived = plot.turnover(records).get_lines()
    assert points(survived) == {1: 0, 2: 50}


def test_nothing_is_cut_off():
    for draw in plot.turnover, plot.explored, plot.degrees:
        axes = draw(history())
        low, high = axes.get_ylim()
        assert low == 0
        most = max(max(line.get_ydata()) for line in axes.get_lines())
        assert most < high < 1.3 * most


def test_degrees_draws_median_extremes_and_a_band():
    axes = plot.degrees(history())
    lines = axes.get_lines()
    assert [points(line)[20] for line in lines] == [10, 50, 30, 0, 8, 4]
    for band, (low, high) in zip(axes.collections, [(20, 40), (2, 6)], strict=True):
        heights = [y for x, y in band.get_paths()[0].vertices if x == 20]
        assert (min(heights), max(heights)) == (low, high)
    assert axes.get_title().startswith("layer a")
    assert plot.degrees(history(), "b").get_title().startswith("layer b")


def test_of_many_layers_some_are_named():
    many = [record(step, **{f"{n}": layer_record(0.1, None, 0.2) for n in range(35)}) for step in (1, 2)]
    axes = plot.explored(many)
    assert len(axes.get_lines()) == 35
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [f"{n}" for n in range(0, 35, 4)]


@pytest.mark.parametrize("draw", [plot.explored, plot.turnover, plot.degrees])
def test_bad_histories_are_refused(draw):
    with pytest.raises(ValueError, match=r"^history must hold the record of an evolution, got none"):
        draw([])
    for wrong in None, [3], "history":
        with pytest.raises(TypeError, match=r"^history must be a list of records, got .*Pass optimizer\.history"):
            draw(wrong)
    assert not pyplot.get_fignums()


def test_a_layer_must_be_in_the_history():
    with pytest.raises(ValueError, match=r"^layer must be one of \['a', 'b'\], got 'c'"):
        plot.degrees(history(), "c")
