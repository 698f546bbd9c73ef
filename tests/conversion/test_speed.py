from torch import nn

from sparsify import kernels, plan, summary
from sparsify._src.conversion.speed import SPARSE, speed_up
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
    head, first, second, total = str(report).splitlines()
    assert "speed" in head
    assert f"{report.layers[0].speed_up:.1f} x" in first
    assert " x" not in second.replace("10 x 1000", "")
    assert " x" not in total
    assert [row.speed_up for row in summary(model).layers] == [None, None]
