import copy

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import nn

from sparsify import SparseConv2d, SparseLinear, plot

CONNECTIONS = torch.tensor([0, 3, 7])  # of (2, 4)


def made():
    return SparseLinear.from_topology((2, 4), CONNECTIONS, torch.tensor([-1.0, 0.0, 2.0]))


def test_the_input_map_is_the_image_of_its_counts():
    axes = plot.inputs(made(), (2, 2))
    (image,) = axes.images
    assert image.get_array().tolist() == [[1, 0], [0, 2]]
    assert image.get_clim() == (0, 2)
    assert axes.get_title() == "connections of each input"


def test_maps_of_before_and_after_share_a_scale():
    first, second = Figure().subplots(1, 2)
    for axes in first, second:
        assert plot.inputs(torch.tensor([1, 2, 3, 4]), (2, 2), axes, most=8) is axes
        assert axes.images[0].get_clim() == (0, 8)
    assert not pyplot.get_fignums(), "no figure is made where axes are given"


def test_what_lies_above_the_scale_is_said():
    axes = plot.inputs(torch.tensor([1, 2, 3, 4]), (2, 2), most=3)
    assert axes.images[0].colorbar.extend == "max"
    assert plot.inputs(torch.tensor([1, 2, 3, 3]), (2, 2), most=3).images[0].colorbar.extend == "neither"


def test_of_a_convolution_the_windows_are_drawn():
    layer = SparseConv2d(4, 5, 3, density=1.0)
    axes = plot.inputs(layer)
    picture = axes.images[0].get_array()
    assert picture.shape == (7, 7)
    assert (picture == 5).sum() == 4 * 9
    with pytest.raises(ValueError, match=r"^shape must be left out for a convolution"):
        plot.inputs(layer, (2, 18))


def test_inputs_refuses_what_is_no_layer_and_no_counts():
    for wrong in nn.Linear(4, 2), nn.Sequential(made()):
        with pytest.raises(TypeError, match=r"^layer must be a sparse layer or a tensor of counts, got"):
            plot.inputs(wrong, (2, 2))
    with pytest.raises(ValueError, match=r"^shape must say how 4 inputs make an image, got None"):
        plot.inputs(made())
    with pytest.raises(ValueError, match=r"^counts must be numbers of connections"):
        plot.inputs(torch.tensor([1, -2, 3, 4]), (2, 2))
    with pytest.raises(TypeError, match=r"^most must be a number"):
        plot.inputs(made(), (2, 2), most="9")
    assert not pyplot.get_fignums(), "an error leaves no empty figure"


def test_topology_shows_the_density_of_each_part_in_percent():
    axes = plot.topology(made(), bins=2)
    assert axes.images[0].get_array().tolist() == [[50, 50], [0, 50]]
    assert axes.images[0].get_extent() == [0, 4, 2, 0]
    assert axes.get_title() == "2 x 4, 3 connections (37.50%)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("input unit", "output unit")
    again = plot.topology((CONNECTIONS, (2, 4)), bins=(1, 2), most=100)
    assert again.images[0].get_array().tolist() == [[25, 50]]
    assert again.images[0].get_clim() == (0, 100)


@pytest.mark.parametrize(("nnz", "bins"), [(10, 1), (1600, 10), (90_000, 64)])
def test_parts_have_enough_connections_that_chance_does_not_hide_the_rest(nnz, bins):
    axes = plot.topology(SparseLinear(300, 400, nnz / 120_000))
    assert axes.images[0].get_array().shape == (bins, bins)


def test_topology_refuses_what_is_none():
    with pytest.raises(TypeError, match=r"^layer must be a sparse layer or \(flat, shape\), got Linear"):
        plot.topology(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"^a topology must be sorted, unique places of range"):
        plot.topology((torch.tensor([3, 0]), (2, 4)))
    with pytest.raises(ValueError, match=r"^shape must be \(out_features, in_features\), got"):
        plot.topology((CONNECTIONS, (8,)))
    with pytest.raises(ValueError, match=r"^bins must be at least 1, got 0"):
        plot.topology(made(), bins=0)
    assert not pyplot.get_fignums()


def test_weights_are_counted_and_zeros_are_told_apart():
    layer = made()
    before = copy.deepcopy(layer)
    with torch.no_grad():
        before.values.copy_(torch.tensor([-4.0, 1.0, 1.0]))
    axes = plot.weights(before, layer, bins=4)
    first, second = (patch.get_data() for patch in axes.patches)
    assert first.edges.tolist() == second.edges.tolist() == [-4, -2, 0, 2, 4]
    assert first.values.tolist() == [1, 0, 2, 0]
    assert second.values.tolist() == [0, 1, 0, 1], "the zero is not drawn"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["before: 3 connections", "after: 3 connections, 1 of them exactly 0"]


def test_weights_takes_values_and_refuses_what_is_not_finite():
    axes = plot.weights(torch.tensor([1.0]), torch.zeros(2))
    np.testing.assert_allclose(axes.patches[0].get_data().edges[[0, -1]], [-1, 1])
    with pytest.raises(TypeError, match=r"^after must be a sparse layer or a tensor of values, got Linear"):
        plot.weights(made(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"^before must hold finite values"):
        plot.weights(torch.tensor([float("nan")]), made())


def test_axes_must_be_one():
    panels = Figure().subplots(1, 2)
    with pytest.raises(TypeError, match=r"^axes must be an Axes of matplotlib's, got .*Of several panels pass one"):
        plot.topology(made(), axes=panels)
