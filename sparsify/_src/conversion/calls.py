"""`Call`: what a layer was given in one call, and how often each of its weights was multiplied."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparsify._src.conversion.linear_maps import CONVOLUTIONS, TRANSPOSED
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window
from sparsify._src.layers.convolution import SparseConv
from sparsify._src.topology import Shape

LOOKED_UP = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
"""Modules whose weights are part of no product of matrices."""


class Call(NamedTuple):
    """One call of a layer.

    uses: how often each of its weights is multiplied.
    batch: rows of input (samples, or tokens of all samples); of a convolution images.
    window, size: of a convolution how it moves over its input, and over how large a one, once that is padded by more
        than zeros on both sides.
    """

    uses: int
    batch: int
    window: Window | None = None
    size: tuple[int, ...] = ()

    def place(self, shape: Shape, training: bool) -> Place:
        """What the time of a layer of `shape` depends on."""
        return Place(training, *shape, self.batch, self.window, self.size)


Calls = tuple[Call, ...] | None
"""All calls of a layer; None where it is not known what they compute."""

Seen = Mapping[str, Calls]
"""Those of each row of a report, by its name."""


def of(
    module: nn.Module, shape: Shape | None, args: Sequence[Any], kwargs: Mapping[str, Any], output: object
) -> Call | None:
    """The call that gave `output`; None where it is not known what it computes.

    Args:
        shape: of the matrix, where the module is a linear layer or a convolution.
    """
    if isinstance(module, LOOKED_UP):
        return Call(0, 0)
    given = next((x for x in (*args, *kwargs.values()) if isinstance(x, (Tensor, PackedSequence))), None)
    if given is None:
        return None
    given = given.data if isinstance(given, PackedSequence) else given
    size = _count(given)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _rows(size, module.input_size)
    if isinstance(module, TRANSPOSED):  # each number that comes in is multiplied by its channel's weights
        return _rows(size, module.in_channels)
    if not isinstance(output, Tensor):
        return None
    if isinstance(module, nn.Bilinear):
        return _rows(_count(output), module.out_features)
    if isinstance(module, (*CONVOLUTIONS, SparseConv)):
        return _of_convolution(module, given, output)
    if shape is None or _count(output) * shape[1] != size * shape[0]:
        return None
    return _rows(size, shape[1])


def of_attention(
    attention: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Call | None]:
    """What a call is for each projection."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    widths = {"q_proj": attention.embed_dim, "k_proj": attention.kdim, "v_proj": attention.vdim}
    pairs = zip(widths.items(), ("query", "key", "value"), strict=True)
    found = {projection: _rows(_count(given[name]), width) for (projection, width), name in pairs}
    return found | {"out_proj": found["q_proj"]}


def _rows(numbers: int, width: int) -> Call | None:
    """Of so many numbers, in rows of `width`."""
    rows, rest = divmod(numbers, max(1, width))
    return None if rest else Call(rows, rows)


def _count(tensor: Tensor) -> int:
    return (tensor.values() if tensor.is_nested else tensor).numel()


def _of_convolution(conv: nn.Module, given: Tensor, output: Tensor) -> Call | None:
    dims, shown = len(conv.kernel_size), output.shape  # type: ignore[arg-type]  # all of them have one
    images = shown[0] if output.dim() == dims + 2 else 1
    if given.dim() != output.dim() or output.dim() - dims not in (1, 2) or shown[-dims - 1] != conv.out_channels:
        return None
    window, size = _moved(conv, tuple(given.shape[-dims:]))
    out_size = tuple(shown[-dims:])
    if window.out_size(size) != out_size:  # a forward of its own has padded in another way
        window = window._replace(padding=(0,) * dims)
        sides = zip(out_size, window.stride, window.extent, strict=True)
        size = tuple((out - 1) * stride + extent for out, stride, extent in sides)
    return Call(images * prod(out_size), images, window, size)


def _moved(conv: Any, size: tuple[int, ...]) -> tuple[Window, tuple[int, ...]]:
    """How a convolution moves over images of `size`, and their size, padded by what is not zeros on both sides."""
    dims, kernel, dilation = len(size), conv.kernel_size, conv.dilation
    before = after = (0,) * dims if isinstance(conv.padding, str) else tuple(conv.padding)
    if conv.padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(both // 2 for both in whole)
        after = tuple(both - one for both, one in zip(whole, before, strict=True))
    if conv.padding_mode == "zeros" and before == after:
        return Window(kernel, conv.stride, before, dilation, conv.groups), size
    padded = tuple(sum(three) for three in zip(size, before, after, strict=True))
    return Window(kernel, conv.stride, (0,) * dims, dilation, conv.groups), padded
