import pytest
from torch import nn

from sparsify import kernels, plan, sparsify, summary
from sparsify._src.conversion.speed import DENSE, SPARSE, dense_milliseconds, milliseconds, speed_up
from sparsify._src.native import library
from tests.support.marks import needs_native


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


def test_every_kernel_has_its_coefficients():
    assert set(kernels.available()) - {"native"} <= SPARSE.keys()


def test_plan_and_summary_tell_the_expected_speed():
    model = nn.Sequential(nn.Linear(2000, 1000), nn.Linear(1000, 10))
    report = plan(model, {"0": 0.05})
    assert [row.speed_up for row in report.layers] == [speed_up((1000, 2000), 100_000), None]
    head, first, second, part, whole, *_ = str(report).splitlines()
    assert "speed" in head
    assert f"{report.layers[0].speed_up:.1f} x" in first
    assert " x" not in second.replace("10 x 1000", "")
    assert f"{report.layers[0].speed_up:.1f} x" in part
    assert f"{report.speed_up:.1f} x" in whole
    assert [row.speed_up for row in summary(model).layers] == [None, None]


def test_at_another_batch_the_call_costs_the_same_and_the_rest_what_it_reads():
    shape, nnz = (300, 200), 5000
    call = milliseconds(shape, 0, 0)
    feature = (milliseconds(shape, 0, 128) - call) / 500
    connection = (milliseconds(shape, nnz, 128) - milliseconds(shape, 0, 128)) / nnz
    for batch, least in [(1, 40), (40, 40), (512, 512)]:
        expected = call + feature * 500 * batch / 128 + connection * nnz * least / 128
        assert milliseconds(shape, nnz, batch) == pytest.approx(expected)
    whole = dense_milliseconds(shape, 128) - DENSE[0]
    assert dense_milliseconds(shape, 276) == pytest.approx(DENSE[0] + 2 * whole)
    assert dense_milliseconds(shape, 1) == pytest.approx(DENSE[0] + 21 / 148 * whole)


@needs_native
def test_the_change_with_the_batch_from_128_to_512_is_nearly_what_the_readme_measured():
    """Times faster than nn.Linear at batch 128 and 512, from the README's first table."""
    measured = {
        (1024, 0.1): (7.8, 7.5),
        (1024, 0.05): (11.6, 11.3),
        (1024, 0.01): (19.8, 27),
        (4096, 0.1): (8.3, 7.2),
        (4096, 0.05): (17.6, 13.5),
        (4096, 0.01): (42, 38),
    }
    for (n, density), (before, after) in measured.items():
        nnz = round(density * n * n)
        change = speed_up((n, n), nnz, 512) / speed_up((n, n), nnz, 128)
        assert 0.74 < change / (after / before) < 1.2


def test_plan_and_summary_tell_speeds_at_a_batch():
    model = nn.Sequential(nn.Linear(2000, 1000), nn.Linear(1000, 10))
    report = plan(model, {"0": 0.05}, batch=8)
    assert report.layers[0].speed_up == speed_up((1000, 2000), 100_000, 8)
    assert report.layers[0].speed_up != plan(model, {"0": 0.05}).layers[0].speed_up
    assert "speed at 8" in str(report)
    assert "speed at" not in str(plan(model, {"0": 0.05}))
    model, _ = sparsify(model, None, {"0": 0.05})
    assert summary(model, batch=8).layers[0].speed_up == report.layers[0].speed_up
    for call in (lambda batch: plan(model, {"1": 0.5}, batch=batch), lambda batch: summary(model, batch=batch)):
        with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
            call(0)
        with pytest.raises(TypeError, match=r"batch must be a whole number, got 1\.5"):
            call(1.5)


def test_the_speed_of_the_whole_is_that_of_all_linear_layers_those_left_dense_too():
    model = nn.Sequential(nn.Embedding(50, 2000), nn.Linear(2000, 1000), nn.Linear(1000, 1000))
    report = plan(model, {"1": 0.05}, batch=64)
    first, second = dense_milliseconds((1000, 2000), 64), dense_milliseconds((1000, 1000), 64)
    sparse = milliseconds((1000, 2000), 100_000, 64)
    assert report.speed_up == pytest.approx((first + second) / (sparse + second))
    assert report.totals[0].speed_up == pytest.approx(first / sparse)
    assert [row.speed_up for row in plan(nn.Embedding(5, 5), {}).totals] == [None]
