"""Layers in the middle of an evolution, made by hand."""

import torch

from sparsify.evolution.view import LayerView
from sparsify.topology import generator, sample


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
