"""Pictures of one layer: its inputs, its topology, its weights."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsify._src.checks import check_count, check_number, shown
from sparsify._src.layers.convolution import SparseConv
from sparsify._src.layers.map import SparseMap
from sparsify._src.pictures.counting import as_image, checked_layer, checked_source, densities, input_counts
from sparsify._src.pictures.drawing import given_or_new, image, label
from sparsify._src.topology import Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BINS = 64
IN_BIN = 16
"""Parts of a topology in a row or column, at most, and connections of a part on average, at least."""


def inputs(
    layer: SparseMap | Tensor,
    shape: tuple[int, ...] | None = None,
    axes: "Axes | None" = None,
    most: float | None = None,
) -> "Axes":
    """Draw how many connections each input of a layer has, as the image that the inputs are.

    After evolution it shows which inputs the network has found useful. Of a convolution it shows the window of each
    input channel, side by side.

    Args:
        layer: the layer that reads the image, or what `input_counts` gave of it earlier.
        shape: of the image: (height, width), or (colours, height, width), whose counts are added up. None for a
            convolution.
        axes: of matplotlib's; None makes new ones.
        most: the number at the top of the scale, which begins at 0; None takes the largest. Pictures with the same one
            can be compared; what lies above it has the colour of the top, and the scale ends in an arrow.
    Raises:
        TypeError, ValueError: the layer is not sparse, or the shape is not that of its inputs.
    Example:
        >>> from sparsify import plot
        >>> layer = SparseLinear(784, 300, density=0.1)
        >>> axes = plot.inputs(layer, (28, 28))
        >>> axes.images[0].get_array().shape
        (28, 28)
    """
    if isinstance(layer, SparseConv) and shape is not None:
        raise ValueError(f"shape must be left out for a convolution, whose windows are drawn, got {shape}.")
    counts = layer
    if not isinstance(counts, Tensor):
        counts = input_counts(checked_layer("layer", layer, " or a tensor of counts"))
    if most is not None:
        check_number("most", most)
    picture = as_image(counts.detach().cpu().numpy(), None if shape is None else tuple(shape))
    if not picture.size or np.nanmin(picture) < 0:
        raise ValueError(f"counts must be numbers of connections, got {shown(layer)}. Pass input_counts(layer).")
    axes = given_or_new(axes, (5, 4.2))
    image(axes, picture, most, "connections")
    is_image = shape is not None
    axes.set(title="connections of each input" if is_image else "connections of each channel and tap")
    axes.set(xticks=[], yticks=[])
    return axes


def topology(
    layer: SparseMap | tuple[Tensor, Shape],
    axes: "Axes | None" = None,
    bins: int | tuple[int, int] | None = None,
    most: float | None = None,
) -> "Axes":
    """Draw where the connections of a layer are: the density of each part of its matrix.

    The matrix is cut into parts as equal as whole units allow, and each shows the share of its own places that are
    connections. Nothing as large as the matrix is made.

    Args:
        layer: a sparse layer, or (flat, shape) of one: `layer.flat()` taken earlier, and `layer.shape`.
        axes: of matplotlib's; None makes new ones.
        bins: parts in a row and in a column, or (rows, columns), no more than there are units; None takes up to 64, as
            long as a part has 16 connections on average, so that chance does not hide the rest.
        most: the density in percent at the top of the scale, which begins at 0; None takes the largest.
    Raises:
        TypeError, ValueError: the layer is not sparse, flat is no topology of the shape, or bins is below 1.
    Example:
        >>> from sparsify import plot
        >>> axes = plot.topology(SparseLinear(8192, 8192, density=0.01), bins=32)
        >>> axes.images[0].get_array().shape
        (32, 32)
    """
    source = checked_source(layer)
    nnz = source.nnz if isinstance(source, SparseMap) else len(source[0])
    if bins is None:
        bins = max(1, min(MOST_BINS, math.isqrt(nnz // IN_BIN)))
    rows, columns = bins if isinstance(bins, tuple) else (bins, bins)
    for count in rows, columns:
        check_count("bins", count, 1)
    if most is not None:
        check_number("most", most)
    shares, shape = densities(source, (rows, columns))
    axes = given_or_new(axes, (5.4, 4.4))
    corners = (0, shape[1], shape[0], 0)
    image(axes, 100 * shares, most, "density (%)", extent=corners, aspect="auto")
    axes.set_title(f"{shape[0]} x {shape[1]}, {nnz:,} connections ({nnz / (shape[0] * shape[1]):.2%})")
    is_convolution = isinstance(source, SparseConv)
    axes.set_xlabel("input channel and tap" if is_convolution else "input unit")
    axes.set_ylabel("output channel" if is_convolution else "output unit")
    return axes


def weights(
    before: SparseMap | Tensor, after: SparseMap | Tensor, axes: "Axes | None" = None, bins: int = 100
) -> "Axes":
    """Draw how the weights of connections are distributed, before and after training.

    Weights of exactly zero, as new connections have, are counted in the legend and not drawn, or they would hide the
    rest.

    Args:
        before: a layer, such as a deep copy from before training, or its values.
        after: the same, from later.
        axes: of matplotlib's; None makes new ones.
        bins: of the histogram, as many below zero as above.
    Raises:
        TypeError, ValueError: a layer is not sparse, or a value is not finite.
    Example:
        >>> from sparsify import plot
        >>> layer = SparseLinear(100, 50, density=0.1)
        >>> before = layer.values.detach().clone()
        >>> axes = plot.weights(before, layer)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['before: 500 connections', 'after: 500 connections']
    """
    check_count("bins", bins, 2)
    found = {"before": _values("before", before), "after": _values("after", after)}
    top = max(float(np.abs(numbers).max()) for numbers in found.values()) or 1.0
    edges = np.linspace(-top, top, 2 * (bins // 2) + 1)
    axes = given_or_new(axes, (7, 4.2))
    looks: dict[str, dict[str, Any]] = {
        "before": {"fill": True, "color": "0.75"},
        "after": {"color": "black", "linewidth": 1.4},
    }
    for name, numbers in found.items():
        nonzero = numbers[numbers != 0]
        zeros = len(numbers) - len(nonzero)
        words = f"{name}: {len(numbers):,} connections" + (f", {zeros:,} of them exactly 0" if zeros else "")
        axes.stairs(np.histogram(nonzero, edges)[0], edges, label=words, **looks[name])
    axes.axvline(0, ymax=0.8, color="black", linestyle=":", linewidth=1)
    label(axes, "weights of connections", "weight", f"connections in each {edges[1] - edges[0]:.2g}")
    axes.set_ylim(0, axes.dataLim.ymax / 0.8)  # room for the legend
    axes.legend(loc="upper left", frameon=False, ncols=1)
    return axes


def _values(argument: str, source: object) -> np.ndarray:
    """The weights of a layer, or of a tensor, as a vector of numbers."""
    if isinstance(source, Tensor) and not isinstance(source, nn.Module):
        values = source
    else:
        values = checked_layer(argument, source, " or a tensor of values").values
    numbers: np.ndarray = values.detach().to("cpu", torch.float64).flatten().numpy()
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"{argument} must hold finite values, got {shown(source)}.")
    return numbers
