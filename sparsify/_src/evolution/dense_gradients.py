"""The gradient of the dense weight, as far as a growth rule asks for it, from the operands of backward passes."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sparsify._src.kernels import gradient_of_values
from sparsify._src.kernels.window import Window, dense_gradient
from sparsify._src.topology import Shape, index

Pairs = Sequence[tuple[Tensor, Tensor]]


class Seen(Protocol):
    """What of a `LayerView` is needed here."""

    @property
    def shape(self) -> Shape: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def passes(self) -> Pairs: ...
    @property
    def window(self) -> Window | None: ...


def of_rows(layer: Seen, rows: slice) -> Tensor:
    """See `LayerView.dense_gradient`."""
    return _sum(dense_gradient(grad, input, layer.window, rows) for grad, input in _operands(layer))


def at_places(layer: Seen, flat: Tensor) -> Tensor:
    """See `LayerView.gradient_at`."""
    indices = index(flat, layer.shape)
    return _sum(gradient_of_values(grad, input, indices, layer.window) for grad, input in _operands(layer))


def _operands(layer: Seen) -> Pairs:
    """Those of all backward passes, at least float32, those of a linear layer in one; the layer keeps them."""
    known: Pairs | None = vars(layer).get("operands")
    if known is None:
        dtype = torch.promote_types(layer.values.dtype, torch.float32)
        passes = layer.passes
        if layer.window is None:  # images of several sizes cannot be one tensor
            grads, inputs = zip(*passes, strict=True)
            passes = [(torch.cat(grads), torch.cat(inputs))]
        known = [(grad.to(dtype).nan_to_num(nan=0.0), input.to(dtype).nan_to_num(nan=0.0)) for grad, input in passes]
        vars(layer)["operands"] = known
    return known


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    for tensor in tensors:  # one at a time: they are as large as what is asked for
        total = tensor if total is None else total.add_(tensor)
    assert total is not None
    return total
