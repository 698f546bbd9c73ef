"""`Window`: how a convolution moves over its input."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsify._src.topology import Shape

SIZES = {1: "length", 2: "height, width", 3: "depth, height, width"}
"""What the dimensions of an input are called, by their number."""


class Window(NamedTuple):
    """What nn.Conv1d, nn.Conv2d and nn.Conv3d call so, a number for each dimension; padding is with zeros.

    The weight of a convolution is a matrix (out_channels, in_channels / groups * taps): a column for each input channel
    of a group and each tap, which is a place in the window, in the order of nn.Conv*'s weight.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Window":
        """The window that `numbers` were made of.

        Raises:
            ValueError: they are none.
        """
        dims, rest = divmod(len(numbers) - 1, 4)
        if rest or dims not in (1, 2, 3):
            raise ValueError(f"window must be groups, kernel_size, stride, padding and dilation, got {list(numbers)}.")
        groups, *parts = numbers
        kernel_size, stride, padding, dilation = (tuple(parts[i : i + dims]) for i in range(0, 4 * dims, dims))
        window = cls(kernel_size, stride, padding, dilation, groups)
        window.check()
        return window

    def check(self) -> None:
        """Check that it can move over an input.

        Raises:
            ValueError: it cannot.
        """
        if min(*self.kernel_size, *self.stride, *self.dilation, self.groups) < 1 or min(self.padding) < 0:
            raise ValueError(
                "kernel_size, stride, dilation and groups must be at least 1, and padding at least 0, got "
                f"{', '.join(f'{name}={given}' for name, given in self._asdict().items())}."
            )

    @property
    def numbers(self) -> list[int]:
        """The same in one list, as operators take it."""
        return [self.groups, *self.kernel_size, *self.stride, *self.padding, *self.dilation]

    @property
    def taps(self) -> int:
        """Places of the window."""
        return prod(self.kernel_size)

    @property
    def skips(self) -> bool:
        """Whether it is one tap that leaves pixels out: what it reads, alone, gives the same `without_stride`."""
        return self.taps == 1 and max(self.stride) > 1 and not any(self.padding)

    @property
    def without_stride(self) -> "Window":
        """The same, that moves by one."""
        return self._replace(stride=(1,) * len(self.stride))

    @property
    def extent(self) -> tuple[int, ...]:
        """The least size of an input without padding."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))

    def in_channels(self, columns: int) -> int:
        """Channels of the input, of a weight with so many columns."""
        return columns // self.taps * self.groups

    def weight_shape(self, shape: Shape) -> tuple[int, ...]:
        """That of nn.Conv*'s weight, for a matrix of `shape`."""
        return (shape[0], shape[1] // self.taps, *self.kernel_size)

    def out_size(self, size: Sequence[Any]) -> tuple[Any, ...]:
        """The dimensions of the output, of an input with these."""
        each = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple(
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, padding, dilation in each
        )

    def dense(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of PyTorch's, by a dense weight of nn.Conv*'s shape, or by a matrix."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        weight = weight.view(self.weight_shape((weight.shape[0], weight.shape[1]))) if weight.dim() == 2 else weight
        result: Tensor = convolve(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return result


def dense_gradient(grad: Tensor, input: Tensor, window: Window | None, rows: slice) -> Tensor:
    """Rows of the gradient of the dense weight from one backward pass: a matrix of so many rows.

    Args:
        grad, input: of a linear layer (batch, out_features) and (batch, in_features); of a convolution (batch,
            out_channels, *out_size) and (batch, in_channels, *size).
        rows: with a beginning and an end.
    """
    if window is None:
        with torch.autocast(grad.device.type, enabled=False):  # growth is to choose alike in and outside of it
            return torch.mm(grad[:, rows].t(), input)
    found, per_group = [], grad.shape[1] // window.groups
    channels, dims = input.shape[1] // window.groups, len(window.kernel_size)
    geometry = window.stride, window.padding, window.dilation, False, [0] * dims, 1
    for group in range(rows.start // per_group, (rows.stop - 1) // per_group + 1):
        part = slice(max(rows.start, group * per_group), min(rows.stop, (group + 1) * per_group))
        seen = input[:, group * channels : (group + 1) * channels]
        weight = input.new_empty(part.stop - part.start, channels, *window.kernel_size)
        needs = [False, True, False]
        of_weight = torch.ops.aten.convolution_backward(grad[:, part], seen, weight, None, *geometry, needs)[1]
        found.append(of_weight.flatten(1))
    return torch.cat(found)


def check_input(shape: Sequence[Any], window: Window, columns: int) -> None:
    """Check the shape of an input (batch, in_channels, *size) for a matrix with so many columns.

    Raises:
        ValueError: it has another number of dimensions or channels, or is smaller than the window; or this is none.
    """
    window.check()
    channels, dims = window.in_channels(columns), len(window.kernel_size)
    if len(shape) != dims + 2 or shape[1] != channels:
        raise ValueError(f"input must be (batch, {channels}, {SIZES[dims]}), got {tuple(shape)}.")
    if columns % window.taps or any(length < 1 for length in window.out_size(shape[2:])):
        raise ValueError(
            f"input must be at least as large as the window {window.kernel_size}, dilated by {window.dilation}, where "
            f"it is padded by {window.padding}, got {tuple(shape)}."
        )
