"""Keeps the operands of backward passes, where a growth rule is going to need the gradient of the dense weight."""

from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Protocol
from weakref import ReferenceType, WeakSet, finalize, ref

import torch
from torch import Tensor, nn

from sparsify._src.kernels.computing import gradient_of_values
from sparsify._src.kernels.shares import are_near, shares
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices
from sparsify._src.torch_private import graph_task, version

LIMIT = 64
"""How many backward passes are kept beside those that have added up to the gradient that is there."""


class Recorded(Protocol):
    """A layer whose backward passes can be kept."""

    values: nn.Parameter
    col: Tensor
    window: Window | None
    _parameters: dict[str, nn.Parameter | None]

    def indices(self) -> Indices:
        """Its topology."""


@dataclass(eq=False)
class Backward:
    """One backward pass of the user's through a layer, which may go through it several times.

    task: PyTorch's number of it.
    own: whether it is for the layer's values, not for others in their place (torch.func.functional_call).
    passes: copies of the operands, (gradient of the output, input) each time.
    sum: the number of the sum in `values.grad` that it has been added to, None for none.
    """

    task: int
    own: bool
    passes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    sum: int | None = None

    def gradient(self, values: Tensor, indices: Indices, window: Window | None) -> Tensor:
        """The gradient of the values from this backward pass alone, (nnz,)."""
        total = torch.zeros_like(values, dtype=self.passes[0][0].dtype)
        for grad, input in self.passes:
            total += gradient_of_values(grad, input, indices, window)
        return total


class Recorder:
    """Keeps copies of the operands of each backward pass through `layer`, as long as the recorder lives.

    It tells those that made the gradient in `layer.values.grad` from others: saliency maps, inner loops, adversarial
    examples, another's loss. Passes of several micro-batches add up until the gradient is zeroed. After a step all stay
    until the next gradient begins, because evolution by hand may ask for them.

    Args:
        layer: its products are known by its buffer `col`.
    """

    def __init__(self, layer: Recorded) -> None:
        self._layer = layer
        self._values = layer._parameters.get("values")  # not where they are computed from others, as in pruning
        self._backwards: list[Backward] = []
        self._past: list[Backward] = []
        self._sum = 0
        self._left: tuple[ReferenceType[Tensor], int] | None = None
        self._is_hooked = False
        self._hook()
        with _lock:
            _recorders.add(self)

    @property
    def passes(self) -> list[tuple[Tensor, Tensor]]:
        """The operands of those passes that made the gradient which is there now."""
        return self.made(self._gradient())

    def made(self, gradient: Tensor | None, compared: bool = True) -> list[tuple[Tensor, Tensor]]:
        """The operands of those passes that made `gradient` (nnz,), which is or was that of the values.

        Args:
            compared: whether to see if the passes that were accumulated make it, as they do not where a gradient was
                saved and restored; otherwise these are taken. Other ranks' passes are not here.
        """
        kept = [*self._past, *self._backwards]
        if gradient is None or self._values is None or not kept:
            return []
        added = [backward for backward in kept if backward.sum == self._sum]
        is_zeroed = not bool(gradient.any())
        if is_zeroed and self._total(added).any():
            return []
        if compared and not is_zeroed and not (len(kept) == len(added) == 1):
            return self._compared(kept, added, gradient)
        return [operands for backward in added for operands in backward.passes]

    def _compared(self, kept: list[Backward], added: list[Backward], gradient: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The passes among `kept` that make `gradient`, in their shares; those `added` where no others do better."""
        total = self._total(added)
        if are_near(total, gradient):
            return [operands for backward in added for operands in backward.passes]
        others = [backward for backward in kept if backward not in added]
        parts = [[backward] for backward in others]
        parts += [[backward] for backward in added] if len(added) <= LIMIT else [added]
        found = shares([self._total(part) for part in parts], total, gradient)
        if found is None:
            found = [float(number >= len(others)) for number in range(len(parts))]
        return [
            (grad if share == 1 else share * grad, input)
            for part, share in zip(parts, found, strict=True)
            for backward in part
            for grad, input in backward.passes
            if share
        ]

    def stepped(self) -> None:
        """Note that the optimizer has stepped: these passes are dropped when the next gradient begins."""
        if self._backwards:
            self._past, self._backwards = self._backwards, []

    def sees(self, indices: Indices) -> bool:
        """Whether a product with these indices is the layer's."""
        return self._layer.col.data_ptr() == indices.col.data_ptr()

    def keep(self, grad: Tensor, input: Tensor, leaf: Tensor | None) -> None:
        """Keep the operands of a product's backward pass, (batch, out_features) and (batch, in_features).

        Those of a convolution are (batch, out_channels, *out_size) and (batch, in_channels, *size).

        Args:
            leaf: the tensor whose `grad` the gradient of the values is added to, None where that is not known.
        """
        self._hook()
        task, own = graph_task(), leaf is None or leaf is self._values
        backward = next((b for b in reversed(self._backwards) if (b.task, b.own) == (task, own)), None)
        if backward is None:
            if self._was_zeroed():
                self._sum += 1
            backward = Backward(task, own)
            self._backwards.append(backward)
            others = [each for each in self._backwards if each.sum != self._sum]
            if len(others) > LIMIT:
                self._backwards.remove(others[0])
        # Copies, because a compiled graph or the user's loop may use the memory again.
        backward.passes.append((grad.detach().clone(), input.detach().clone()))

    def accumulated(self) -> None:
        """The backward pass that is under way has added to `values.grad`."""
        task = graph_task()
        for backward in self._backwards:
            if backward.task == task and backward.own:
                backward.sum = self._sum
                self._past = []
        gradient = self._gradient()
        self._left = None if gradient is None else (ref(gradient), version(gradient))

    def _hook(self) -> None:
        """Register a hook that is told of accumulated gradients, once the values can have one."""
        if not self._is_hooked and self._values is not None and self._values.requires_grad:
            told = partial(_accumulated, ref(self))
            finalize(self, self._values.register_post_accumulate_grad_hook(told).remove)  # type: ignore[no-untyped-call]
            self._is_hooked = True

    def _gradient(self) -> Tensor | None:
        return None if self._values is None else self._values.grad

    def _was_zeroed(self) -> bool:
        """Whether the gradient was zeroed since the last pass, so that the next begins a new sum."""
        gradient, left = self._gradient(), self._left
        if gradient is None:
            return True
        is_left = left is not None and left[0]() is gradient and left[1] == version(gradient)
        return not is_left and not bool(gradient.any())

    def _total(self, backwards: list[Backward]) -> Tensor:
        """The gradient that these have added up to, (nnz,)."""
        indices, values = self._layer.indices(), self._layer.values.detach()
        gradients = (backward.gradient(values, indices, self._layer.window) for backward in backwards)
        return sum(gradients, start=torch.zeros_like(values))


_recorders: WeakSet[Recorder] = WeakSet()
_lock = RLock()


def is_recording() -> bool:
    """Whether backward passes are kept, of some layer or other."""
    return bool(_recorders)


def record(grad: Tensor, input: Tensor, indices: Indices, leaf: Tensor | None) -> None:
    """Show the operands of a backward pass to the recorders; for `leaf` see `Recorder.keep`."""
    if _recorders:
        with _lock:  # several models may train at the same time
            alive = list(_recorders)
        for recorder in alive:
            if recorder.sees(indices):
                recorder.keep(grad, input, leaf)


def _accumulated(recorder: "ReferenceType[Recorder]", _: Tensor) -> None:
    alive = recorder()
    if alive is not None:
        alive.accumulated()
