import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from sparsify import SparseConv2d, SparseLinear, plot, sparsify


def network():
    first = SparseLinear.from_topology((2, 3), torch.tensor([0, 2, 3]), torch.tensor([1.0, -0.5, 0.25]))
    second = SparseLinear.from_topology((1, 2), torch.tensor([1]), torch.tensor([-3.0]))
    return nn.Sequential(first, nn.ReLU(), second)


def lines(axes):
    """(from, to) -> (is solid, width, grey); units by their column and row of height."""
    found = {}
    for collection in axes.collections:
        if not hasattr(collection, "get_segments"):
            continue
        solid = collection.get_linestyle()[0][1] is None
        rows = zip(collection.get_segments(), collection.get_linewidths(), collection.get_colors(), strict=True)
        for segment, width, colour in rows:
            found[tuple(np.round(segment, 3).flatten().tolist())] = solid, width, colour[0]
    return found


def test_each_connection_is_a_line():
    axes = plot.graph(network())
    found = lines(axes)
    top, middle, bottom = 1.0, 0.5, 0.0
    high, low = 0.5 + 0.3375, 0.5 - 0.3375  # of two units beside three
    high, low = round(high, 3), round(low, 3)
    assert set(found) == {
        (0, top, 1, high),  # place 0: output 0, input 0
        (0, bottom, 1, high),  # place 2
        (0, top, 1, low),  # place 3: output 1, input 0
        (1, low, 2, middle),
    }
    strong, negative, weak = found[0, top, 1, high], found[0, bottom, 1, high], found[0, top, 1, low]
    assert strong[0]
    assert weak[0]
    assert not negative[0]
    assert strong[1] > negative[1] > weak[1]
    assert strong[2] < negative[2] < weak[2], "0 is black"
    assert axes.get_title() == "4 connections"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3 inputs", "2 units", "1 output"]


def test_units_that_are_cut_off_are_hollow():
    units = [c for c in plot.graph(network()).collections if not hasattr(c, "get_segments")]
    hollow = [[bool(colour[0] == 1) for colour in unit.get_facecolors()] for unit in units]
    assert hollow == [[False, True, False], [True, False], [False]]


def test_dense_layers_are_drawn_beside_sparse_ones():
    model, _ = sparsify(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), None, 0.5, skip=["2"])
    assert len(lines(plot.graph(model))) == 12 + 8


def test_only_small_chains_of_linear_layers_are_drawn():
    with pytest.raises(ValueError, match=r"^model must have at most 5,000 connections .* got 10,000\. .* topology"):
        plot.graph(nn.Sequential(SparseLinear(200, 100, 0.5)))
    with pytest.raises(TypeError, match=r"^model must have linear layers only .* got a SparseConv2d at '0'"):
        plot.graph(nn.Sequential(SparseConv2d(1, 2, 3, 0.5), nn.Flatten(), nn.Linear(2, 2)))
    attention, _ = sparsify(nn.Sequential(nn.MultiheadAttention(8, 2)), None, 0.5)
    with pytest.raises(TypeError, match=r"^model must have linear layers only .* SparseMultiheadAttention at '0'"):
        plot.graph(attention)
    with pytest.raises(ValueError, match=r"^model must have layers that read each other .* 4 outputs of '0' before 5"):
        plot.graph(nn.Sequential(SparseLinear(3, 4, 0.5), SparseLinear(5, 2, 0.5)))
    with pytest.raises(TypeError, match=r"^model must have linear layers .* got a ReLU without"):
        plot.graph(nn.ReLU())
    assert not pyplot.get_fignums()
