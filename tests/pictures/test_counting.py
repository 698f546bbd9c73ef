import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from sparsify import SparseConv1d, SparseConv2d, SparseConv3d, SparseLinear
from sparsify._src.pictures.counting import as_image, densities
from sparsify.plot import input_counts


def test_counts_are_of_each_input():
    layer = SparseLinear.from_topology((2, 4), torch.tensor([0, 3, 7]), torch.ones(3))
    assert input_counts(layer).tolist() == [1, 0, 0, 2]
    layer = SparseLinear(30, 20, 0.3)
    assert torch.equal(input_counts(layer), (layer.to_dense() != 0).sum(0))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [SparseConv1d, SparseConv2d, SparseConv3d])
def test_counts_of_a_convolution_are_of_each_channel_and_tap(kind, groups):
    layer = kind(4, 6, 3, 0.3, groups=groups)
    weight = layer.to_conv().weight  # (6, 4 / groups, *taps)
    expected = (weight != 0).unflatten(0, (groups, -1)).sum(1).flatten(0, 1)
    assert torch.equal(input_counts(layer), expected)


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), None, torch.ones(3)])
def test_what_is_not_sparse_is_refused(layer):
    with pytest.raises(TypeError, match=r"^layer must be a sparse layer, got .*Pass a layer of a model that sparsify"):
        input_counts(layer)


@pytest.mark.parametrize("bins", [(1, 1), (4, 5), (3, 7), (10, 13), (64, 64)])
def test_each_part_has_the_share_of_its_own_places(bins):
    layer = SparseLinear(13, 10, 0.3)
    dense = (layer.to_dense() != 0).double().numpy()
    rows, cols = min(bins[0], 10), min(bins[1], 13)
    row, col = np.arange(10) * rows // 10, np.arange(13) * cols // 13
    expected = [[dense[row == r][:, col == c].mean() for c in range(cols)] for r in range(rows)]
    for source in layer, (layer.flat(), layer.shape):
        found, shape = densities(source, bins)
        np.testing.assert_allclose(found, expected)
        assert shape == (10, 13)


def test_a_large_layer_takes_little_memory():
    layer = SparseLinear(8192, 8192, 0.01)
    tracemalloc.start()  # numpy tells it of its arrays
    densities(layer, (64, 64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


def test_colours_are_added_up():
    assert as_image(np.arange(8), (2, 2, 2)).tolist() == [[4, 6], [8, 10]]
    assert as_image(np.arange(4), (2, 2)).tolist() == [[0, 1], [2, 3]]


def test_windows_lie_side_by_side_with_a_line_between():
    gap = float("nan")
    rows = [[0, gap, 1, gap, 2], [gap] * 5, [3, gap, 4, gap, gap]]
    np.testing.assert_array_equal(as_image(np.arange(5).reshape(5, 1, 1), None), rows)
    row = [[0, 1, gap, 4, 5, gap, 8, 9], [2, 3, gap, 6, 7, gap, 10, 11]]
    np.testing.assert_array_equal(as_image(np.arange(12).reshape(3, 2, 2), None), row)


def test_the_depth_of_a_window_lies_side_by_side():
    picture = as_image(np.arange(8).reshape(1, 2, 2, 2), None)
    assert picture.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize("shape", [(2, 3), (5,), (1, 1, 5, 1)])
def test_a_shape_must_be_that_of_the_inputs(shape):
    with pytest.raises(ValueError, match=r"^shape must be \(height, width\) or .* of 5 inputs, got \("):
        as_image(np.ones(5), shape)
