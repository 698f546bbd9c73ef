"""Layers in the middle of an evolution, made by hand, and rules of the user's that break their contract."""

import re

import pytest
import torch

from sparsify import Evolution, SparseLinear, SparseOptimizer
from sparsify._src.evolution.layer_view import LayerView
from sparsify._src.native import library
from sparsify._src.vectors import generator, sample
from tests.support.marks import PATHS


def view_of(values, shape=None, flat=None, gradient=None, passes=(), seed=0):
    """A view of connections with these values; in a layer with plenty of room where no shape is given."""
    values = torch.as_tensor(values)
    shape = shape or (1, 10 * len(values) + 10)
    flat = torch.arange(len(values)) if flat is None else torch.as_tensor(flat, dtype=torch.int64)
    survives = torch.ones(len(values), dtype=torch.bool)
    return LayerView("layer", shape, flat, values, survives, generator(seed), gradient, passes)


def random_view(shape, nnz, seed=0, **fields):
    flat = sample(shape[0] * shape[1], nnz, generator("flat", *shape, nnz, seed))
    values = torch.randn(nnz, generator=generator("values", nnz, seed))
    return view_of(values, shape, flat, seed=seed, **fields)


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    """For files that import it: each test on the compiled path and on the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(library, "LIBRARY", None)


def refused(message, **rules):
    """Evolving by hand with these rules raises this error, and changes nothing."""
    layer = SparseLinear(20, 20, 10 / 400)
    flat = torch.tensor([0, 50, 70, 90, 110, 130, 150, 170, 190, 210])
    layer.set_topology(flat, torch.arange(1.0, 11.0).flip(0), None)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = SparseOptimizer(optimizer, {"fc": layer}, Evolution(interval=None, **{"drop_fraction": 0.2, **rules}))
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        optimizer.evolve()
    assert torch.equal(layer.flat(), flat)
    assert layer.values.tolist() == list(range(10, 0, -1))
    assert not optimizer.history


def emptied(length, dtype=torch.float32):
    """A vector whose memory was given back."""
    vector = torch.ones(length, dtype=dtype)
    vector.untyped_storage().resize_(0)
    return vector


class Other(torch.Tensor):
    """Not a plain tensor."""


def positions(*numbers, dtype=torch.int64):
    return torch.tensor(numbers, dtype=dtype)
