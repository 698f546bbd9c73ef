"""`SparseConv1d`, `SparseConv2d`, `SparseConv3d`: convolutions that hold their connections only."""

import copy
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from sparsify._src import kernels
from sparsify._src.kernels.window import Window
from sparsify._src.layers.adoption import adopt
from sparsify._src.layers.from_dense import matrix_shape
from sparsify._src.layers.inputs import checked_images
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Indices

Numbers = int | tuple[int, ...]


def _find_moves(
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> tuple[Window, tuple[int, ...]]:
    """How a convolution moves, and what F.pad pads its input by before.

    The product by itself pads with as many zeros before as after: then there is nothing else to pad by.
    """
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        before, after = tuple(n // 2 for n in whole), tuple(n - n // 2 for n in whole)
    else:
        before = after = (0,) * len(kernel_size) if isinstance(padding, str) else padding
    if not any(after) or (padding_mode == "zeros" and before == after):
        return Window(kernel_size, stride, before, dilation, groups), ()
    ahead = tuple(n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair)
    return Window(kernel_size, stride, (0,) * len(kernel_size), dilation, groups), ahead


_known_moves = lru_cache(maxsize=1024)(_find_moves)


class SparseConv(SparseMap):
    """A convolution whose weight is a `torch_sparse.SparseTensor`: what `SparseConv2d` and its kin share.

    The weight is a matrix (out_channels, in_channels / groups * taps): one connection is one weight of one filter. A
    column is an input channel of the group and a place in the window, in the order of nn.Conv*'s weight.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as for nn.Conv*.
        density: share of all weights that are connections, in (0, 1].
        generator: on the CPU, of the topology and the initial values; None seeds one from torch's global generator.
        device, dtype: of the parameters, as in nn.Conv*.

    Attributes:
        values: Parameter (nnz,), the weights of the connections in row-major order. Always the same object.
        bias: Parameter (out_channels,) or None.
        and those of nn.Conv*: in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode.

    Raises:
        ValueError, TypeError: density is outside (0, 1], or the rest is nothing that nn.Conv* takes.
    """

    _kind: type[nn.Module]
    _dims: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        density: float,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in ("in_channels", in_channels), ("out_channels", out_channels):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        options: dict[str, Any] = {"padding_mode": padding_mode, "device": "meta"}
        dense = self._kind(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        adopt(self, dense)
        if len(self.kernel_size) != self._dims:
            raise ValueError(f"kernel_size must be a number, or {self._dims} of them, got {self.kernel_size}.")
        self.window.check()
        self._draw(matrix_shape(dense), density, bias, generator, device, dtype)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        density: float | None = None,
        *,
        start: Literal["random", "magnitude", "nonzero"] = "random",
        generator: torch.Generator | None = None,
    ) -> Self:
        """Make the sparse layer that takes the place of `conv`, as `SparseLinear.from_linear` does of a linear one.

        Raises:
            TypeError: conv is of another kind.
        """
        if not isinstance(conv, cls._kind):
            raise TypeError(f"conv must be an nn.{cls._kind.__name__}, got {type(conv).__name__}.")
        return cls._from_dense(conv, density, start, generator)

    @property
    def window(self) -> Window:  # type: ignore[override]  # of no other sparse layer is it anything
        """How it moves over its input, once that is padded by more than zeros on both sides."""
        return self._moves()[0]

    def _moves(self) -> tuple[Window, tuple[int, ...]]:
        """The window, and what F.pad pads the input by before."""
        padding = self.padding if isinstance(self.padding, str) else self._each("padding")
        given = self.kernel_size, self._each("stride"), padding, self._each("dilation"), self.groups, self.padding_mode
        return _find_moves(*given) if torch.compiler.is_compiling() else _known_moves(*given)

    def _each(self, name: str) -> tuple[int, ...]:
        """An attribute as a number for each dimension; nn.Conv* takes one for all, too."""
        given = getattr(self, name)
        if isinstance(given, tuple) and len(given) == self._dims:
            return given
        numbers = (given,) if isinstance(given, int) else tuple(given)
        if len(numbers) not in (1, self._dims):
            raise ValueError(f"{name} must be a number, or {self._dims} of them, got {given}.")
        return numbers * self._dims if len(numbers) == 1 else numbers

    def _map(self, input: Tensor, indices: Indices) -> Tensor:
        values, dims = self.values, self._dims
        window, ahead = self._moves()
        input = checked_images(input, values, self.in_channels, dims)
        is_one = input.dim() == dims + 1
        if is_one:
            input = input.unsqueeze(0)
        if ahead:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, ahead, mode).to(input.dtype)  # autocast pads in float32 in some modes
        output = kernels.sparse_convolution(input, values, self.bias, indices, window)
        return output.squeeze(0) if is_one else output

    def to_conv(self) -> nn.Module:
        """The dense nn.Conv* that computes the same; its parameters are copies."""
        conv = self._kind(1, 1, 1, bias=False, device="meta")
        adopt(conv, self)
        weight = self.to_dense().detach().view(self.weight_shape)
        conv.weight = nn.Parameter(weight, requires_grad=self.values.requires_grad)
        conv.register_parameter("bias", copy.deepcopy(self.bias))
        return conv

    def to_module(self) -> nn.Module:
        """`to_conv`."""
        return self.to_conv()

    def extra_repr(self) -> str:
        """What repr() shows."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ones, zeros = (1,) * len(self.kernel_size), (0,) * len(self.kernel_size)
        for name, usual in ("padding", zeros), ("dilation", ones), ("groups", 1), ("padding_mode", "zeros"):
            if getattr(self, name) != usual:
                shown += f", {name}={getattr(self, name)!r}"
        return f"{shown}, nnz={self.nnz}, density={self.density:.3g}, bias={self.bias is not None}"


class SparseConv1d(SparseConv):
    """An nn.Conv1d that holds its connections only: see `SparseConv2d`.

    Shape:
        input (batch, in_channels, length), or without a batch -> output (batch, out_channels, out_length)
    Example:
        >>> layer = SparseConv1d(16, 32, kernel_size=5, density=0.1)
        >>> layer(torch.randn(8, 16, 100)).shape
        torch.Size([8, 32, 96])
    """

    _kind, _dims = nn.Conv1d, 1


class SparseConv2d(SparseConv):
    """An nn.Conv2d whose weight is a `torch_sparse.SparseTensor`, over its connections alone.

    The weight is a matrix (out_channels, in_channels / groups * taps): one connection is one weight of one filter. A
    column is an input channel of the group and a place in the window, in the order of nn.Conv2d's weight.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as for nn.Conv2d.
        density: share of all weights that are connections, in (0, 1].
        generator: on the CPU, of the topology and the initial values; None seeds one from torch's global generator.
        device, dtype: of the parameters, as in nn.Conv2d.

    Attributes:
        values: Parameter (nnz,), the weights of the connections in row-major order. Always the same object.
        bias: Parameter (out_channels,) or None.
        and those of nn.Conv2d: in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode.

    Shape:
        input (batch, in_channels, height, width), or without a batch -> output (batch, out_channels, out_height,
        out_width)
    Raises:
        ValueError, TypeError: density is outside (0, 1], or the rest is nothing that nn.Conv2d takes.
    Example:
        >>> layer = SparseConv2d(64, 128, kernel_size=3, density=0.1, padding=1)
        >>> layer
        SparseConv2d(64, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), nnz=7373, density=0.1, bias=True)
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 32, 32])
    """

    _kind, _dims = nn.Conv2d, 2


class SparseConv3d(SparseConv):
    """An nn.Conv3d that holds its connections only: see `SparseConv2d`.

    Shape:
        input (batch, in_channels, depth, height, width), or without a batch -> output (batch, out_channels, out_depth,
        out_height, out_width)
    Example:
        >>> layer = SparseConv3d(4, 8, kernel_size=3, density=0.1, stride=2)
        >>> layer(torch.randn(2, 4, 9, 9, 9)).shape
        torch.Size([2, 8, 4, 4, 4])
    """

    _kind, _dims = nn.Conv3d, 3
