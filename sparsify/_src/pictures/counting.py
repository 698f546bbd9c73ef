"""The numbers of pictures of a layer: connections of each input, and the density of each part of the matrix."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsify._src import topology
from sparsify._src.checks import shown
from sparsify._src.layers.convolution import SparseConv
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Shape
from sparsify._src.vectors import check_vector


def checked_layer(argument: str, layer: object, instead: str = "") -> SparseMap:
    """`layer`, which must be sparse.

    Args:
        instead: what else would do, for the error.
    """
    if not isinstance(layer, SparseMap):
        raise TypeError(
            f"{argument} must be a sparse layer{instead}, got {shown(layer)}. Pass a layer of a model that sparsify() "
            "has made sparse, such as model[0], and of attention one of its projections."
        )
    return layer


@torch.no_grad()
def input_counts(layer: SparseMap) -> Tensor:
    """How many connections each input of a layer has: the numbers of `inputs`, to be kept from before training.

    Args:
        layer: a SparseLinear, or a sparse convolution.
    Returns:
        counts int64 on the CPU, (in_features,), or of a convolution (in_channels, *kernel_size).
    Raises:
        TypeError: the layer is not sparse.
    Example:
        >>> from sparsify import plot
        >>> layer = SparseLinear(4, 3, density=1.0)
        >>> plot.input_counts(layer)
        tensor([3, 3, 3, 3])
    """
    layer = checked_layer("layer", layer)
    indices = layer.indices()
    if not isinstance(layer, SparseConv):
        return indices.ccol.cpu().long().diff()
    of_group = topology.rows(indices.crow, layer.nnz) // (layer.out_channels // layer.groups)
    place = of_group * layer.in_features + indices.col
    counts = torch.bincount(place, minlength=layer.groups * layer.in_features)
    return counts.cpu().view(layer.in_channels, *layer.kernel_size)


def densities(source: SparseMap | tuple[Tensor, Shape], bins: tuple[int, int]) -> tuple[np.ndarray, Shape]:
    """The density of each part of a matrix that is cut into `bins` rows and columns of parts, and its shape.

    Parts are as equal as whole units allow; each has the share of its own places. Reads one row of parts at a time.

    Args:
        source: a layer, or (flat, shape): sorted, unique flat indices and (out_features, in_features).
        bins: (rows, columns); no more than there are units.
    """
    columns, shape = _columns(source)
    rows, cols = (min(bins[0], shape[0]), min(bins[1], shape[1]))
    part = np.arange(shape[1]) * cols // shape[1]
    edges = [-(-n * shape[0] // rows) for n in range(rows + 1)]
    counts = np.stack([np.bincount(part[columns(*ends)], minlength=cols) for ends in pairwise(edges)])
    places = np.diff(edges)[:, None] * np.bincount(part, minlength=cols)
    return counts / places, shape


def _columns(source: SparseMap | tuple[Tensor, Shape]) -> tuple[Callable[[int, int], np.ndarray], Shape]:
    """A function that gives the columns of all connections in a range of rows, and the shape."""
    if isinstance(source, SparseMap):
        indices = source.indices()
        crow, col = indices.crow.cpu().numpy(), indices.col.cpu().numpy()
        return lambda begin, end: col[crow[begin] : crow[end]], source.shape
    flat, shape = source
    numbers, width = flat.cpu().numpy(), shape[1]

    def columns(begin: int, end: int) -> np.ndarray:
        first, last = np.searchsorted(numbers, [begin * width, end * width])
        rest: np.ndarray = numbers[first:last] % width
        return rest

    return columns, shape


def checked_source(source: object) -> SparseMap | tuple[Tensor, Shape]:
    """A layer, or (flat, shape), where it is one of these."""
    if not (isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Tensor)):
        return checked_layer("layer", source, " or (flat, shape)")
    flat, shape = source
    check_vector("flat", flat, (torch.int64,))
    if len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"shape must be (out_features, in_features), got {shown(shape)}. Pass layer.shape.")
    topology.check_flat(flat, tuple(shape))
    return flat, tuple(shape)


def as_image(counts: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Counts as a picture (height, width).

    Those of colours are added up, those of a convolution's windows laid side by side, with a line between them.

    Args:
        shape: of the image, (height, width) or (colours, height, width); None for a picture as it is, or windows.
    """
    if shape is not None:
        if len(shape) not in (2, 3) or math.prod(shape) != counts.size:
            raise ValueError(
                f"shape must be (height, width) or (colours, height, width) of {counts.size} inputs, got {shape}."
            )
        picture = counts.reshape(shape)
        return picture if len(shape) == 2 else picture.sum(0)
    if counts.ndim == 1:
        raise ValueError(f"shape must say how {counts.size} inputs make an image, got None. Pass (height, width).")
    return counts if counts.ndim == 2 else _mosaic(counts)


def _mosaic(windows: np.ndarray) -> np.ndarray:
    """Windows (channels, height, width), or (channels, depth, height, width), beside and below each other."""
    if windows.ndim == 4:
        windows = np.concatenate(list(np.moveaxis(windows, 1, 0)), axis=2)
    channels, height, width = windows.shape
    across = channels if channels <= 3 else math.ceil(math.sqrt(channels * height / width))
    down = -(-channels // across)
    picture = np.full((down * (height + 1) - 1, across * (width + 1) - 1), np.nan)
    for n, window in enumerate(windows):
        top, left = n // across * (height + 1), n % across * (width + 1)
        picture[top : top + height, left : left + width] = window
    return picture
