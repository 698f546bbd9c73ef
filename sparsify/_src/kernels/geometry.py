"""`Geometry`: what follows from how a convolution moves over images of one size, kept from call to call."""

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import NamedTuple

from torch import Tensor

from sparsify._src.kernels.window import Window, check_input
from sparsify._src.native.library import Convolution, Product


class Geometry(NamedTuple):
    """What follows from a window and the size of an image.

    out_size: of an image that comes out; it has so many pixels.
    read: of a window that `skips` pixels, those that it reads of an input (batch, in_channels, *size). The rest is
        said of images that have these pixels alone, over which it moves by one.
    places: of an image with its padding; those that are between strides are counted, too.
    convolution: what C is told.
    """

    out_size: tuple[int, ...]
    pixels: int
    read: tuple[slice, ...] | None
    places: int
    convolution: Convolution


def geometry(input: Tensor, window: Window, columns: int) -> Geometry:
    """That of an input in plain memory.

    Raises:
        ValueError: as of `check_input`.
    """
    found = _geometry(window, input.shape[1:], columns)
    if found is None:
        check_input(input.shape, window, columns)
    assert found is not None
    return found


@lru_cache(maxsize=1024)
def _geometry(window: Window, image: tuple[int, ...], columns: int) -> Geometry | None:
    """The same of images (in_channels, *size); None where they do not fit the window."""
    try:
        check_input((1, *image), window, columns)
    except ValueError:
        return None
    size, read = image[1:], None
    out_size = window.out_size(size)
    if window.skips:
        read = (slice(None), slice(None), *(slice(None, None, stride) for stride in window.stride))
        size, window = out_size, window.without_stride
    strides = [1 if length == 1 else stride for length, stride in zip(out_size, window.stride, strict=True)]
    padded = [length + 2 * padding for length, padding in zip(size, window.padding, strict=True)]
    places = prod(length + min(length, stride) for length, stride in zip(padded, window.stride, strict=True))
    missing = 3 - len(size)

    def three(numbers: Iterable[int], rest: int) -> tuple[int, ...]:
        return (*[rest] * missing, *numbers)

    sizes = three(size, 1), three(out_size, 1)
    moves = three(window.kernel_size, 1), three(strides, 1), three(window.padding, 0), three(window.dilation, 1)
    convolution = Convolution(Product(), window.groups, *sizes, *moves)
    return Geometry(out_size, prod(out_size), read, places, convolution)
