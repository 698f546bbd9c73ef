"""Keeps the operands of backward passes, where a growth rule is going to need the gradient of the dense weight."""

from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

from sparsify.topology import Indices

if TYPE_CHECKING:
    from sparsify.matrix import SparseMatrix


class Recorder:
    """Keeps copies of the operands of each backward pass through `layer`, as long as the recorder lives.

    What it holds belongs to the gradient that `layer.values.grad` holds: passes of several micro-batches add up until
    the gradient is zeroed, or the optimizer has stepped.

    Args:
        layer: its products are known by its buffer `col`.
    """

    def __init__(self, layer: "SparseMatrix") -> None:
        self.passes: list[tuple[Tensor, Tensor]] = []
        self._layer = layer
        self._backward: int | None = None
        self._stepped = False
        with _lock:
            _recorders.add(self)

    def stepped(self) -> None:
        """The optimizer has stepped: what is here is of the past once the next backward pass begins."""
        self._stepped = True

    def sees(self, indices: Indices) -> bool:
        """Whether a product with these indices is the layer's."""
        return self._layer.col.data_ptr() == indices.col.data_ptr()

    def keep(self, grad: Tensor, input: Tensor) -> None:
        """Keep the operands of a backward pass: (batch, out_features) and (batch, in_features)."""
        backward = torch._C._current_graph_task_id()  # one backward may pass through a shared layer several times
        values = self._layer._parameters.get("values")  # not where they are computed from others, as in pruning
        if self._stepped or (backward != self._backward and not _any(None if values is None else values.grad)):
            self.passes.clear()
        self._stepped, self._backward = False, backward
        # Copies, because a compiled graph or the user's loop may use the memory again.
        self.passes.append((grad.detach().clone(), input.detach().clone()))


_recorders: WeakSet[Recorder] = WeakSet()
_lock = RLock()


def record(grad: Tensor, input: Tensor, indices: Indices) -> None:
    """Show the operands of a backward pass to the recorders."""
    if _recorders:
        with _lock:  # several models may train at the same time
            alive = list(_recorders)
        for recorder in alive:
            if recorder.sees(indices):
                recorder.keep(grad, input)


def _any(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())
