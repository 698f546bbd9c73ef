"""Convolutions of every shape, and the dense function that each must equal."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify import SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src.layers.convolution import SparseConv

LAYERS = {1: SparseConv1d, 2: SparseConv2d, 3: SparseConv3d}
DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Case(NamedTuple):
    """A convolution and the size of its input."""

    dims: int
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    density: float
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    size: tuple[int, ...]
    batch: int

    def layer(self, dtype: torch.dtype = torch.float64) -> SparseConv:
        return LAYERS[self.dims](
            *self.channels,
            self.kernel,
            self.density,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
            dtype=dtype,
        )

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(self.batch, self.channels[0], *self.size, dtype=dtype)


@st.composite
def cases(draw, most: int = 9, batches: st.SearchStrategy = st.integers(0, 40)) -> Case:  # noqa: B008
    """Small ones: windows of up to four places a side, outputs of up to `most` more than one."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))

    def each(least, largest):
        return tuple(draw(st.lists(st.integers(least, largest), min_size=dims, max_size=dims)))

    kernel, stride, dilation, padding = each(1, 4 if dims < 3 else 3), each(1, 3), each(1, 3), each(0, 3)
    beyond = each(0, most if dims < 3 else 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    return Case(
        dims,
        (groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))),
        kernel,
        draw(st.sampled_from([0.01, 0.1, 0.5, 1.0])),
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        tuple(a + b for a, b in zip(least, beyond, strict=True)),
        draw(batches),
    )


def by_dense(layer: SparseConv):
    """What `layer` computes, as a function of input, values and bias by PyTorch's own convolution."""
    rest = layer.stride, layer.padding, layer.dilation, layer.groups
    flat, places, shape = layer.flat(), layer.out_features * layer.in_features, layer.weight_shape

    def function(input, values, bias=None):
        weight = values.new_zeros(places).index_put((flat,), values).view(shape)
        return DENSE[len(layer.kernel_size)](input, weight, bias, *rest)

    return function


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions and a head, for images (3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, dtype=dtype),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2, dtype=dtype),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(108, 5, dtype=dtype),
    )


def images(number: int, count: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A batch for `network`."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(5, (count,), generator=generator)
