"""How long a convolution takes, from a few coefficients, and how these are found."""

import warnings

import numpy as np
import pytest

from sparsify._src.conversion import built_in, measuring, speed
from sparsify._src.conversion.convolution_costs import DENSE, SPARSE, Costs, dense_work, fitted, sparse_work
from sparsify._src.conversion.figures import Figures, Pair
from sparsify._src.conversion.places import IMAGES, MOST, MOST_OF_IMAGES, ROWS, Place
from sparsify._src.kernels.window import Window

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch-sparse scripts with torch.jit
    import benchmark

WINDOW = Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
PLACE = Place(True, 8, 4 * 9, 32, WINDOW, (6, 5))
"""Eight channels in and out, in two groups."""

COSTS = Costs(16, ((1.0, 0, 0, 0, 0, 0), (2.0, 1e-3, 0, 0, 0, 0)), ((1.0, 0, 0, 0), (3.0, 1e-3, 0, 0)), "an abacus")
GRID = np.ones((2, 6, 5, 4))


def at(images, **others):
    return PLACE._replace(batch=images, **others)


def test_the_work_of_a_dense_convolution():
    products = 8 * 36 * 30 * 32
    numbers = (8 + 8) * 30 * 32
    assert dense_work(PLACE).tolist() == [1, products, products / 4, products / 4, numbers, 8 * 36]
    assert len(DENSE) == 6


@pytest.mark.parametrize(
    ("images", "lanes", "steps"),
    [
        (32, 16, 2 * 40),  # strips of 8, 8, 8 and 6 of the 30 pixels' vectors, and two for each
        (33, 16, 2 * 40 + 6),  # and one of 4: 8 x 7 places in vectors of 16
        (40, 16, 2 * 40 + 4 * 10),  # no more than half of the lanes would hold an image: 8 x 4 vectors
        (41, 16, 3 * 40),
        (41, 8, 5 * 40 + 9),
        (1, 4, 2 * 9),
    ],
)
def test_lanes_that_hold_nothing_cost_as_others(images, lanes, steps):
    assert sparse_work(at(images), 10, lanes).tolist() == [1, 10 * lanes * steps, 16 * 30 * images, 10]
    assert len(SPARSE) == 4


def test_with_a_stride_a_vector_has_places_of_one_phase():
    strided = at(1, window=WINDOW._replace(stride=(2, 2)))
    assert sparse_work(strided, 1, 16)[1] == 16 * 3, "4 x 4 of 8 x 7: one vector"


def test_a_window_of_one_tap_leaves_images_as_they_are_unless_there_is_much_to_do():
    window = Window((1, 1), (1, 1), (0, 0), (1, 1))
    aligned = Place(False, 64, 256, 32, window, (8, 8))  # four vectors of 16 pixels
    numbers = (64 + 256) * 64 * 32
    for nnz in 10, 256 * 64:
        assert sparse_work(aligned, nnz, 16).tolist() == pytest.approx([1, nnz * 16 * 32 * 6, 0.35 * numbers, nnz])
    skewed = aligned._replace(size=(7, 9))  # a vector has pixels of the one before, and begins anywhere
    few, many = sparse_work(skewed, 10, 16), sparse_work(skewed, 256 * 64, 16)
    assert few[1] == 10 * 16 * 32 * 2 * 2 * 4, "no strip is longer than 63 pixels: two of two vectors"
    assert many[1] == 256 * 64 * 16 * 2 * 8 * 10, "16 images a vector"
    assert sparse_work(skewed._replace(training=True), 10, 16)[1] == pytest.approx(1.7 / 2 * few[1])
    for other in window._replace(padding=(0, 1)), window._replace(kernel_size=(1, 2)):
        assert sparse_work(aligned._replace(window=other), 10, 16)[2] == aligned._replace(window=other).elements
    assert sparse_work(aligned._replace(size=(3, 5)), 10, 16)[2] == 320 * 15 * 32, "no vector is full"
    skips = aligned._replace(window=window._replace(stride=(3, 2)), size=(22, 15))  # 8 x 8 pixels that are read
    more = 0.35 * 256 * (22 * 15 - 8 * 8) * 32
    assert sparse_work(skips, 10, 16) == pytest.approx(sparse_work(aligned, 10, 16) + np.array([0, 0, more, 0]))


def test_a_time_is_the_sum_of_what_the_work_costs_and_training_is_another():
    assert COSTS.of_dense(PLACE) == pytest.approx(2 + PLACE.multiply_adds / 1000)
    assert COSTS.of_dense(PLACE._replace(training=False)) == 1
    assert COSTS.of_sparse(PLACE, 10) == pytest.approx(3 + 10 * 16 * 80 / 1000)


def test_without_our_kernels_a_convolution_is_no_faster_than_dense():
    for form in "aten", "torch_sparse":
        costs = built_in.nearest({}, form).costs
        assert costs.of_sparse(PLACE, 1) > costs.of_dense(PLACE)


def test_coefficients_are_found_again_and_none_is_below_zero():
    rng = np.random.default_rng(0)
    work = rng.uniform(1, 9, (20, 4)) * [1, 1e6, 1e3, 1e9]
    true = np.array([0.5, 2e-7, 0.0, 3e-9])
    assert fitted(list(work), work @ true) == pytest.approx(true, rel=1e-6, abs=1e-12)
    noisy = (work @ [0.5, 2e-7, -1e-5, 3e-9]) * rng.uniform(0.9, 1.1, 20)
    found = np.array(fitted(list(work), noisy))
    assert (found >= 0).all()
    assert work @ found == pytest.approx(noisy, rel=0.3)


def test_the_fit_of_the_benchmark_finds_what_a_machine_costs(monkeypatch):
    true, places = built_in.nearest({}, "AVX-512").costs, []

    def layer(place, *counts, seconds):
        places.append((place, counts))
        return Pair(true.of_dense(place), {nnz: true.of_sparse(place, nnz) for nnz in counts})

    monkeypatch.setattr(measuring, "layer", layer)
    monkeypatch.setattr(speed, "form", lambda: "AVX-512")
    found = benchmark.fit_convolutions(0.1)
    assert len({place for place, _ in places}) == 2 * len(benchmark.FITTED)
    for place, counts in places:
        assert found.of_dense(place) == pytest.approx(true.of_dense(place), rel=1e-3)
        for nnz in counts:
            assert found.of_sparse(place, nnz) == pytest.approx(true.of_sparse(place, nnz), rel=1e-3)


def test_every_machine_has_costs_and_they_are_written_as_they_are_read():
    assert built_in.CONVOLUTIONS.keys() == {"XEON_AVX512", "XEON_AVX2", "EPYC_AVX512"}
    for table in built_in.CONVOLUTIONS.values():
        costs = built_in.parsed_costs(table, 16, "it")
        assert built_in.parsed_costs(built_in.written_costs(costs), 16, "it") == costs
        assert min(min(line) for line in (*costs.dense, *costs.sparse)) >= 0
    for form, lanes in built_in.LANES.items():
        assert built_in.nearest({}, form).costs.lanes == lanes
    assert built_in.nearest({"vendor_id": "AuthenticAMD"}, "AVX-512").costs.source == "an AMD EPYC with AVX-512"
    with pytest.raises(ValueError, match="costs must be of 6 and 4 kinds of work"):
        built_in.parsed_costs("1 2\n1 2\n1 2\n1 2", 16, "it")


# Figures of convolutions


def test_a_convolution_that_was_measured_is_told_as_measured():
    own = Figures(GRID, "", {PLACE: Pair(7.0, {10: 4.0, 20: 5.0})}, COSTS)
    assert own.dense_at(PLACE) == 7
    assert (own.sparse_at(PLACE, 10), own.sparse_at(PLACE, 20)) == (pytest.approx(4), pytest.approx(5))
    assert 4 < own.sparse_at(PLACE, 15) < 5


def test_others_are_told_as_much_slower_as_the_median_of_those_that_were_measured():
    layers = {at(n): Pair(f * COSTS.of_dense(at(n)), {9: 3 * f * COSTS.of_sparse(at(n), 9)}) for n, f in
              ((16, 1.0), (48, 2.0), (80, 9.0))}  # fmt: skip
    own, unmeasured = Figures(GRID, "", layers, COSTS), Figures(GRID, "", {}, COSTS)
    other = at(64, training=False)
    assert own.dense_at(other) == pytest.approx(2 * unmeasured.dense_at(other))
    assert own.sparse_at(other, 30) == pytest.approx(6 * unmeasured.sparse_at(other, 30))
    assert unmeasured.dense_at(other) == COSTS.of_dense(other)


def test_the_table_says_where_times_of_convolutions_come_from():
    measured = Figures(GRID, "measured here", {}, COSTS)
    assert measured.told(False) == "measured here"
    assert measured.told(True) == "measured here; of convolutions built-in figures of an abacus"
    assert Figures(GRID, "measured here", {PLACE: Pair(1.0, {})}, COSTS).told(True) == "measured here"
    built = built_in.nearest({}, "AVX-512")
    assert built.told(True) == built.source


# Places


def test_large_layers_are_measured_with_fewer_rows_and_told_as_many_times_longer():
    large = at(10**6)
    few = large.fewer
    assert few.batch % IMAGES == 0
    assert MOST_OF_IMAGES / 2 < few.multiply_adds <= MOST_OF_IMAGES
    assert at(few.batch).fewer == few.fewer == few
    assert Place(True, 2**13, 2**13, 10**6).fewer.batch == ROWS == MOST // 2**26
    assert at(10**6, size=(10**4, 10**4)).fewer.batch == IMAGES
    assert Place(True, 20, 30, 128).fewer == Place(True, 20, 30, 128)
    own = Figures(GRID, "", {few: Pair(7.0, {10: 4.0})}, COSTS)
    assert own.dense_at(large) == pytest.approx(7 * 10**6 / few.batch)
    assert own.sparse_at(large, 10) == pytest.approx(4 * 10**6 / few.batch, rel=0.01)
