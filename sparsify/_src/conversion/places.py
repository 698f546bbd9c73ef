"""`Place`: what a layer's time depends on, beside its connections."""

from math import prod
from typing import NamedTuple

from sparsify._src.kernels.window import Window
from sparsify._src.topology import Shape

MOST = 2**33
"""Multiply-adds of a dense layer's forward pass above which it is measured with fewer rows: they take a second."""

MOST_OF_IMAGES = 2**31
"""The same of a convolution, of which two dense forms are measured."""

ROWS = 128
"""No fewer rows than these; of a convolution as many images as fill a vector, `IMAGES`."""

IMAGES = 16


class Place(NamedTuple):
    """What a layer's time depends on, beside its connections.

    training: forward and backward, or forward alone.
    out_features, in_features: of its matrix; a convolution has a column for each channel of a group and tap.
    batch: rows of input; of a convolution images.
    window, size: of a convolution how it moves over its input, and over how large a one.
    """

    training: bool
    out_features: int
    in_features: int
    batch: int
    window: Window | None = None
    size: tuple[int, ...] = ()

    @property
    def shape(self) -> Shape:
        """Of its matrix."""
        return self.out_features, self.in_features

    @property
    def pixels(self) -> int:
        """Of an image that comes out; 1 of a linear layer."""
        return 1 if self.window is None else prod(self.window.out_size(self.size))

    @property
    def multiply_adds(self) -> int:
        """Of a dense layer's forward pass."""
        return self.out_features * self.in_features * self.batch * self.pixels

    @property
    def elements(self) -> int:
        """Numbers that come in, and go out."""
        if self.window is None:
            return (self.in_features + self.out_features) * self.batch
        ins = self.window.in_channels(self.in_features) * prod(self.size)
        return (ins + self.out_features * self.pixels) * self.batch

    @property
    def fewer(self) -> "Place":
        """Where it is measured: with fewer rows, where so many would take long; its time grows as they do."""
        most, least = (MOST, ROWS) if self.window is None else (MOST_OF_IMAGES, IMAGES)
        each = max(1, self.multiply_adds // max(1, self.batch))
        return self._replace(batch=min(self.batch, max(least, most // each // IMAGES * IMAGES)))
