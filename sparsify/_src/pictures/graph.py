"""A tiny network as a graph."""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsify._src import topology
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.layer import SparseLayer
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.pictures.drawing import given_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 5_000
"""Connections that can still be told apart."""


class Drawn(NamedTuple):
    """The connections of one layer: output units, input units and values, each (nnz,)."""

    row: np.ndarray
    col: np.ndarray
    values: np.ndarray


def graph(model: nn.Module, axes: "Axes | None" = None) -> "Axes":
    """Draw a tiny network as a graph: a column of units for each layer, a line for each connection.

    A line is darker and wider the larger its |value| is beside the largest of its layer; positive ones are solid,
    negative ones dashed. A hollow unit is cut off: nothing comes in, or nothing goes out.

    Args:
        model: of linear layers, sparse and dense, of which each reads the one before, in the order of its modules.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: the model has other layers with weights, no linear one, layers that do not fit each
            other, or more than 5,000 connections.
    Example:
        >>> from sparsify import plot
        >>> model = nn.Sequential(SparseLinear(8, 6, density=0.25), nn.ReLU(), SparseLinear(6, 2, density=0.5))
        >>> plot.graph(model).get_title()
        '18 connections'
    """
    layers = _chain(model)
    connections = sum(_count(layer) for layer in layers.values())
    if connections > MOST:
        raise ValueError(
            f"model must have at most {MOST:,} connections to be drawn as a graph, got {connections:,}. Draw a smaller "
            "one, or each layer by topology()."
        )
    drawn = [_drawn(layer) for layer in layers.values()]
    sizes = [next(iter(layers.values())).in_features, *(layer.out_features for layer in layers.values())]
    axes = given_or_new(axes, (7, 4.5))
    places = [_places(size, max(sizes)) for size in sizes]
    for column, (layer, (ins, outs)) in enumerate(zip(drawn, pairwise(places), strict=True)):
        _draw_connections(axes, column, layer, ins, outs)
    for column, (size, heights) in enumerate(zip(sizes, places, strict=True)):
        alive = np.ones(size, dtype=bool)
        if column:
            alive &= np.bincount(drawn[column - 1].row, minlength=size) > 0
        if column < len(drawn):
            alive &= np.bincount(drawn[column].col, minlength=size) > 0
        area = min(60.0, 3000.0 / max(sizes))
        faces = np.where(alive[:, None], 0.15, 1.0) * np.ones(3)
        axes.scatter(np.full(size, column), heights, s=area, c=faces, edgecolors="black", linewidths=0.8, zorder=3)
    kinds = ["input", *["unit"] * (len(sizes) - 2), "output"]
    words = [f"{size} {kind}{'s' * (size > 1)}" for size, kind in zip(sizes, kinds, strict=True)]
    axes.set_xticks(range(len(sizes)), words)
    axes.set_xlabel("solid: positive; dashed: negative; hollow: cut off", fontsize="small")
    axes.set(yticks=[], xlim=(-0.25, len(sizes) - 0.75), ylim=(-0.04, 1.04))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{connections:,} connections")
    return axes


def _chain(model: nn.Module) -> dict[str, SparseLinear | nn.Linear]:
    """The linear layers of a model that has no others with weights, and of which each fits the one before."""
    layers: dict[str, SparseLinear | nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, (SparseLinear, nn.Linear)):
            layers[name] = module
        elif _has_weights(module):
            raise TypeError(
                f"model must have linear layers only to be drawn as a graph, got a {type(module).__name__} at {name!r}."
            )
    if not layers:
        raise TypeError(f"model must have linear layers to be drawn as a graph, got a {type(model).__name__} without.")
    for (before, first), (after, second) in pairwise(layers.items()):
        if first.out_features != second.in_features:
            raise ValueError(
                f"model must have layers that read each other in their order, got {first.out_features} outputs of "
                f"{before!r} before {second.in_features} inputs of {after!r}."
            )
    return layers


def _has_weights(module: nn.Module) -> bool:
    """Whether it maps by weights of its own, as norms do not."""
    if isinstance(module, (SparseLayer, SparseMultiheadAttention, nn.MultiheadAttention)):
        return True
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _count(layer: SparseLinear | nn.Linear) -> int:
    return layer.nnz if isinstance(layer, SparseLinear) else layer.weight.numel()


@torch.no_grad()
def _drawn(layer: SparseLinear | nn.Linear) -> Drawn:
    if isinstance(layer, SparseLinear):
        indices = layer.indices()
        row, col = topology.rows(indices.crow, layer.nnz), indices.col
    else:
        row, col = torch.ones_like(layer.weight).nonzero().unbind(1)
    values = layer.values if isinstance(layer, SparseLinear) else layer.weight.flatten()
    return Drawn(row.cpu().numpy(), col.cpu().numpy(), values.detach().float().cpu().numpy())


def _places(size: int, most: int) -> np.ndarray:
    """How high each unit of a column stands, from 1 down to 0; columns of fewer units are shorter."""
    if size == 1:
        return np.array([0.5])
    height = 0.35 + 0.65 * (size - 1) / max(1, most - 1)
    return 0.5 + height * np.linspace(0.5, -0.5, size)


def _draw_connections(axes: "Axes", column: int, layer: Drawn, ins: np.ndarray, outs: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    sizes = np.abs(layer.values)
    sizes = sizes / (sizes.max(initial=0) or 1)
    for is_positive, style in (True, "solid"), (False, "dashed"):
        chosen = np.flatnonzero((layer.values >= 0) == is_positive)
        if not len(chosen):
            continue
        chosen = chosen[np.argsort(sizes[chosen], kind="stable")]  # the largest come last, above the others
        starts = np.stack([np.full(len(chosen), column), ins[layer.col[chosen]]], 1)
        ends = np.stack([np.full(len(chosen), column + 1), outs[layer.row[chosen]]], 1)
        greys = 0.85 * (1 - sizes[chosen, None]) * np.ones(3)
        widths = 0.4 + 1.6 * sizes[chosen]
        axes.add_collection(
            LineCollection(np.stack([starts, ends], 1), colors=greys, linewidths=widths, linestyles=style, zorder=1)  # type: ignore[arg-type]
        )
