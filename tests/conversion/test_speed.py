"""What `plan` and `summary` tell of speed, and where it comes from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsify import GMP, kernels, plan, sparsify, summary
from sparsify._src.conversion import built_in, figures_file, measuring, speed
from sparsify._src.conversion.figures import GRID, SIZES, Pair
from sparsify._src.conversion.measuring import Unsteady
from sparsify._src.conversion.places import Place
from sparsify._src.conversion.speed import Use, dense_milliseconds, milliseconds, speed_up
from sparsify._src.kernels.window import Window
from sparsify._src.native import library
from tests.support.marks import needs_native

INTEL = {"vendor_id": "GenuineIntel"}


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch, tmp_path):
    """Nothing is known of this machine."""
    monkeypatch.setattr(speed, "_known", {})
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a dense layer takes 6 ms, a sparse one 1 and as many more as it has thousands of connections;
    in the grid a sparse one 2 ms. It notes what it was asked to measure."""
    asked = SimpleNamespace(grids=[], layers=[], fails=False, guess=2.0)

    def grid(sizes):
        if asked.fails:
            raise Unsteady("it had a core for 50% of the time only")
        asked.grids.append(sizes)
        found = np.full(GRID, np.nan)
        found[:, : len(sizes), :, 0], found[:, : len(sizes), :, 1:] = 6.0, asked.guess
        return found

    def layer(place, nnz):
        asked.layers.append((place, nnz))
        return Pair(6.0, {nnz: 1 + nnz / 1000})

    monkeypatch.setattr(measuring, "grid", grid)
    monkeypatch.setattr(measuring, "layer", layer)
    return asked


def restarted():
    """As in a new process."""
    speed._known.clear()


@needs_native
def test_a_wide_sparse_layer_is_expected_to_be_faster_and_a_nearly_full_one_slower():
    assert speed_up((4096, 4096), 4096 * 4096 // 100) > 10
    assert speed_up((1024, 1024), 1024 * 1024 // 10) > 1
    assert speed_up((1024, 1024), 1024 * 1024 * 9 // 10) < 1
    assert speed_up((8, 8), 6) < 1


@needs_native
def test_without_the_native_kernels_less_is_expected(monkeypatch):
    shape, nnz = (1024, 1024), 100_000
    native = speed_up(shape, nnz)
    monkeypatch.setattr(library, "LIBRARY", None)
    assert speed_up(shape, nnz) < native


def test_the_built_in_figures_are_those_of_the_machine_most_like_this_one():
    assert {*kernels.available()} - {"native"} <= built_in.SLOWER.keys()
    ours = built_in.nearest(INTEL, "AVX-512")
    assert ours.source.startswith("built-in figures of an Intel Xeon with AVX-512; plan(..., measure=True) measures")
    assert "EPYC" in built_in.nearest({"vendor_id": "AuthenticAMD"}, "AVX-512").source
    for form in "AVX2", "baseline":
        assert "AVX2" in built_in.nearest({"vendor_id": "AuthenticAMD"}, form).source
    aten = built_in.nearest(INTEL, "aten")
    assert np.array_equal(aten.grid[..., 0], ours.grid[..., 0])
    assert np.array_equal(aten.grid[..., 1:], built_in.SLOWER["aten"] * ours.grid[..., 1:])


def test_a_table_is_written_as_it_is_read():
    for table in built_in.XEON_AVX512, built_in.XEON_AVX2, built_in.EPYC_AVX512:
        assert built_in.written(built_in.parsed(table)).split() == table.split()
        assert (built_in.parsed(table) > 0).all()


def test_plan_and_summary_tell_the_expected_speed():
    model = nn.Sequential(nn.Linear(2000, 1000), nn.Linear(1000, 10))
    report = plan(model, {"0": 0.05})
    assert [row.speed_up for row in report.layers] == [speed_up((1000, 2000), 100_000), None]
    head, first, second, part, whole, *_, last = str(report).splitlines()
    assert "speed" in head
    assert f"{report.layers[0].speed_up:.1f} x" in first
    assert " x" not in second.replace("10 x 1000", "")
    assert f"{report.layers[0].speed_up:.1f} x" in part
    assert f"{report.speed_up:.1f} x" in whole
    assert last == f"speed: {speed.figures().source}"
    assert [row.speed_up for row in summary(model).layers] == [None, None]
    assert "speed:" not in str(summary(model))


def test_plan_and_summary_tell_speeds_at_a_batch_and_of_inference():
    model = nn.Sequential(nn.Linear(2000, 1000), nn.Linear(1000, 10))
    usual = plan(model, {"0": 0.05})
    assert str(usual).splitlines()[0].split()[-2:] == ["speed", "dead"]
    for use, head in [
        (Use(8), "speed at 8"),
        (Use(training=False), "inference"),
        (Use(8, False), "inference at 8"),
    ]:
        told = {"batch": use.batch, "training": use.training}
        report = plan(model, {"0": 0.05}, **told)
        assert f"  {head}  dead" in str(report)
        assert f">{head}<" in report._repr_html_()
        assert (report.batch, report.training) == use
        layer = report.layers[0]
        assert layer.speed_up == speed_up((1000, 2000), 100_000, use) != usual.layers[0].speed_up
        assert report.rows()[0]["milliseconds"] == milliseconds((1000, 2000), 100_000, use)
        assert report.rows()[0]["dense_milliseconds"] == dense_milliseconds((1000, 2000), use)
        sparse, _ = sparsify(nn.Sequential(nn.Linear(2000, 1000)), None, {"0": 0.05})
        assert summary(sparse, **told).layers[0].speed_up == layer.speed_up


@pytest.mark.parametrize(
    "call", [lambda **use: plan(nn.Linear(9, 9), 0.5, **use), lambda **use: summary(nn.Linear(9, 9), **use)]
)
def test_what_is_no_batch_or_no_truth_is_refused(call):
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        call(batch=0)
    with pytest.raises(TypeError, match=r"batch must be a whole number, got 1\.5"):
        call(batch=1.5)
    with pytest.raises(TypeError, match=r"(?s)training must be True or False, got SGD .*optimizer="):
        call(training=torch.optim.SGD([torch.zeros(1)], 0.1))


def test_the_speed_of_the_whole_is_that_of_all_linear_layers_those_left_dense_too():
    model = nn.Sequential(nn.Embedding(50, 2000), nn.Linear(2000, 1000), nn.Linear(1000, 1000))
    report = plan(model, {"1": 0.05}, batch=64)
    first, second = dense_milliseconds((1000, 2000), Use(64)), dense_milliseconds((1000, 1000), Use(64))
    sparse = milliseconds((1000, 2000), 100_000, Use(64))
    assert report.speed_up == pytest.approx((first + second) / (sparse + second))
    assert report.totals[0].speed_up == pytest.approx(first / sparse)
    assert [row.speed_up for row in plan(nn.Embedding(5, 5), {}).totals] == [None]


def test_a_plan_measures_only_if_told_to(machine):
    model = nn.Linear(100, 200)
    before = plan(model, 0.1)
    sparsify(nn.Sequential(nn.Linear(5000, 5000)), None, 0.01, skip="losing")
    summary(model)
    assert (machine.grids, machine.layers) == ([], [])
    report = plan(model, 0.1, measure=True)
    assert machine.grids == [SIZES[:-1]]
    assert machine.layers == [(Place(True, 200, 100, 128), 2000)]
    assert report.layers[0].speed_up == pytest.approx(6 / 3)
    assert report.told.startswith("measured on this machine with ")
    assert "built-in" in before.told
    assert "built-in" not in str(report)


def test_what_was_measured_is_not_measured_again_and_counts_for_all_that_is_told(machine):
    first = plan(nn.Linear(100, 200), 0.1, measure=True)
    for _ in range(2):
        assert plan(nn.Linear(100, 200), 0.1, measure=True) == first
        assert plan(nn.Linear(100, 200), 0.1) == first
        sparse, _ = sparsify(nn.Sequential(nn.Linear(100, 200)), None, 0.1)
        assert summary(sparse).layers[0].speed_up == first.layers[0].speed_up
        restarted()
    assert (len(machine.grids), len(machine.layers)) == (1, 1)
    plan(nn.Linear(100, 200), 0.1, measure=True, training=False, batch=4)
    assert machine.layers[1:] == [(Place(False, 200, 100, 4), 2000)]
    assert plan(nn.Linear(900, 900), 0.1).layers[0].speed_up == pytest.approx(6 / 2), "of the grid"


def test_layers_of_one_shape_are_measured_once_and_giants_never(machine):
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(3)), nn.Linear(100, 10**6))
    report = plan(model, {"[0-2]": 0.1, "3": 0.001}, measure=True)
    assert [(place.out_features, nnz) for place, nnz in machine.layers] == [(100, 1000)]
    assert report.layers[3].speed_up > 1


def test_what_is_sparse_already_is_measured_too_and_what_is_elsewhere_is_not(machine, monkeypatch):
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 30))
    model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), {"0": 0.5})
    plan(model, 0.1, optimizer=sgd, evolution=GMP(until=10), measure=True)
    assert [place.out_features for place, _ in machine.layers] == [30, 100]
    monkeypatch.setattr(speed, "is_known", lambda device: False)
    plan(nn.Linear(70, 70), 0.1, measure=True)
    assert len(machine.layers) == 2


def test_with_an_example_layers_are_measured_at_their_sizes_convolutions_too(machine):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(2), nn.Linear(16, 100), nn.Linear(100, 10))
    given = {"kinds": (nn.Linear, nn.Conv2d), "example": torch.randn(20, 3, 8, 8)}
    before = plan(model, {"1": 0.5, "3": 0.5}, **given)
    assert machine.layers == []
    report = plan(model, {"1": 0.5, "3": 0.5}, measure=True, **given)
    window = Window((3, 3), (1, 1), (0, 0), (1, 1))
    assert machine.layers == [
        (Place(True, 8, 72, 20, window, (6, 6)), 288),
        (Place(True, 100, 16, 160), 800),
    ]
    assert [row.speed_up for row in report.sparse] == [pytest.approx(6 / 1.288), pytest.approx(6 / 1.8)]
    factor = 6 / before.layers[1].dense_milliseconds
    assert report.layers[0].milliseconds == pytest.approx(factor * before.layers[0].milliseconds), "left dense"
    assert "built-in" in before.told
    assert "built-in" not in report.told
    restarted()
    assert plan(model, {"1": 0.5, "3": 0.5}, measure=True, **given) == report
    assert summary(sparsify(model, None, {"1": 0.5, "3": 0.5}, kinds=given["kinds"])[0], example=given["example"]).told
    assert (len(machine.grids), len(machine.layers)) == (1, 2)


def test_where_no_convolution_was_measured_the_plan_says_whose_figures_it_tells(machine):
    plan(nn.Linear(100, 200), 0.1, measure=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    report = plan(model, {"1": 0.5}, kinds=nn.Conv2d, example=torch.randn(4, 3, 8, 8))
    assert report.told.startswith("measured on this machine with ")
    assert "; of convolutions built-in figures of an " in report.told
    assert "convolutions" not in plan(nn.Linear(100, 200), 0.1).told


def test_losing_is_decided_anew_with_an_example_until_all_was_measured(machine):
    """Measured, those of more than 5000 connections lose."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 40, 3), nn.Conv2d(40, 8, 3))
    given = {"kinds": (nn.Conv2d,), "example": torch.randn(16, 3, 40, 40), "measure": True}
    report = plan(model, {"0": 0.25, "1": 0.25, "2": 0.25}, skip="losing", **given)
    assert [row.name for row in report.sparse] == ["0", "2"]
    assert report.skip == ("1",)
    assert {place.out_features for place, _ in machine.layers} == {64, 40, 8}


@pytest.mark.parametrize("change", ["threads", "torch", "library"])
def test_under_other_circumstances_it_is_measured_anew(machine, monkeypatch, change):
    plan(nn.Linear(100, 200), 0.1, measure=True)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    else:
        monkeypatch.setattr(speed, "_digest", lambda file: "another")
    assert "built-in" in plan(nn.Linear(100, 200), 0.1).told
    plan(nn.Linear(100, 200), 0.1, measure=True)
    assert len(machine.grids) == 2


def test_a_broken_file_is_measured_anew(machine, tmp_path):
    plan(nn.Linear(100, 200), 0.1, measure=True)
    [file] = tmp_path.iterdir()
    file.write_text("{")
    restarted()
    assert "built-in" in plan(nn.Linear(100, 200), 0.1).told
    plan(nn.Linear(100, 200), 0.1, measure=True)
    assert len(machine.grids) == 2


def test_where_it_cannot_be_kept_it_lasts_as_long_as_the_process_and_the_plan_says_so(machine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "file"))
    report = plan(nn.Linear(100, 200), 0.1, measure=True)
    assert report.notes[-1].startswith("speed: what was measured is lost with this process: ")
    assert plan(nn.Linear(100, 200), 0.1).layers[0].speed_up == pytest.approx(6 / 3)
    assert len(machine.grids) == 1


def test_on_a_busy_machine_nothing_is_kept_and_the_plan_says_so(machine, tmp_path):
    machine.fails = True
    report = plan(nn.Linear(100, 200), 0.1, measure=True)
    assert report.notes[-1] == (
        "speed: not measured here, because something else used the processor (it had a core for 50% of the time only)"
    )
    assert "built-in" in report.told
    assert list(tmp_path.iterdir()) == []
    machine.fails = False
    assert "measured on this machine" in plan(nn.Linear(100, 200), 0.1, measure=True).told


@pytest.mark.parametrize("error", [KeyboardInterrupt, Unsteady])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_was_measured_before_an_interruption_is_kept_and_not_measured_again(machine, monkeypatch, error, number):
    model, measure = nn.Sequential(*[nn.Linear(100 + i, 200) for i in range(3)]), measuring.layer

    def interrupted(place, nnz):
        if len(machine.layers) == number:
            raise error("now")
        return measure(place, nnz)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "layer", interrupted)
        if error is Unsteady:
            assert "not measured here" in plan(model, 0.1, measure=True).notes[-1]
        else:
            with pytest.raises(KeyboardInterrupt):
                plan(model, 0.1, measure=True)
    assert len(figures_file.read(speed._key()).layers) == len(machine.layers) == number
    assert "measured on this machine" in plan(model, 0.1).told
    restarted()
    plan(model, 0.1, measure=True)
    assert len(machine.grids) == 1
    assert len(set(machine.layers)) == len(machine.layers) == 3


def test_what_another_process_has_measured_is_taken(machine):
    plan(nn.Linear(100, 200), 0.1, measure=True)
    restarted()
    assert plan(nn.Linear(100, 200), 0.1).layers[0].speed_up == pytest.approx(6 / 3)
    kept = figures_file.read(speed._key())
    assert figures_file.write(speed._key(), kept._replace(grid=kept.grid * 2, layers={})) == ""
    assert plan(nn.Linear(100, 200), 0.1).layers[0].speed_up == pytest.approx(6 / 3), "known once, it stays"


def test_losing_is_decided_anew_until_all_that_becomes_sparse_was_measured(machine):
    """The grid says of all that they gain; measured, those of 7000 connections do not."""
    model = nn.Sequential(nn.Linear(200, 350), nn.Linear(100, 100), nn.Linear(90, 100))
    report = plan(model, {"0": 0.1, "1": 0.1, "2": 0.1}, skip="losing", measure=True)
    assert [row.name for row in report.sparse] == ["1", "2"]
    assert report.layers[0].reason.startswith("it would be slower than dense (0.75 x)")
    model, _ = sparsify(model, None, {"0": 0.1, "1": 0.1, "2": 0.1}, skip="losing")
    assert isinstance(model[0], nn.Linear)
    assert len(machine.layers) == 3


def test_losing_is_judged_by_what_was_measured_even_where_the_grid_says_that_all_lose(machine):
    machine.guess = 7.0
    model = nn.Sequential(nn.Linear(200, 350), nn.Linear(100, 100))
    report = plan(model, {"0": 0.1, "1": 0.1}, skip="losing", measure=True)
    assert [row.name for row in report.sparse] == ["1"]
    with pytest.raises(ValueError, match=r"each is expected to be slower than dense: '0' 0\.75 x"):
        plan(model, {"0": 0.1}, skip="losing", measure=True)


def test_where_times_say_nothing_measuring_is_refused(machine, monkeypatch):
    with (
        FlopCounterMode(display=False),
        pytest.raises(ValueError, match=r"measure must be False under .*Call plan outside"),
    ):
        plan(nn.Linear(100, 200), 0.1, measure=True)
    monkeypatch.setattr(speed, "Ranks", lambda: SimpleNamespace(group="a group"))
    with pytest.raises(ValueError, match=r"measure must be False in distributed training, got True.*in one process"):
        plan(nn.Linear(100, 200), 0.1, measure=True)
    assert machine.grids == []


def test_use_is_what_losing_judges_by_where_nothing_is_said():
    assert speed.USUAL == (128, True)
    assert [Use().is_usual, Use(8).is_usual, Use(training=False).is_usual] == [True, False, False]
