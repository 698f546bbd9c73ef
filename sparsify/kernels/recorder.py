"""Keeps the operands of backward passes, where a growth rule is going to need the gradient of the dense weight."""

from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING
from weakref import ReferenceType, WeakSet, finalize, ref

import torch
from torch import Tensor

from sparsify.topology import Indices

if TYPE_CHECKING:
    from sparsify.matrix import SparseMatrix

CLOSE = 0.05
"""How far a gradient may be from a sum of backward passes' and still be made of them."""

FAR = 0.9
"""The same where no pass has been accumulated: gradients that were computed by hand may have been clipped or noised."""


@dataclass(eq=False)
class Backward:
    """One backward pass of the user's through a layer, which may go through it several times.

    task: PyTorch's number of it.
    passes: copies of the operands, (gradient of the output, input) each time.
    gradient: of `values`, (nnz,), by this backward pass alone.
    sum: the number of the sum in `values.grad` that it has been added to, None for none.
    """

    task: int
    passes: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    gradient: Tensor | None = None
    sum: int | None = None


class Recorder:
    """Keeps copies of the operands of each backward pass through `layer`, as long as the recorder lives.

    It tells those that made the gradient in `layer.values.grad` from others: saliency maps, inner loops, adversarial
    examples, another's loss. Passes of several micro-batches add up until the gradient is zeroed; all are forgotten
    once the optimizer has stepped and the next one begins.

    Args:
        layer: its products are known by its buffer `col`.
    """

    def __init__(self, layer: "SparseMatrix") -> None:
        self._layer = layer
        self._backwards: list[Backward] = []
        self._sum = 0
        self._left: tuple[int, int] | None = None
        self._stepped = self._is_hooked = False
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
        added = [backward for backward in self._backwards if backward.sum == self._sum]
        if gradient is None or not self._backwards:
            return []
        if compared and not (len(self._backwards) == len(added) == 1):
            weights = _weights(self._backwards, added, gradient)
        else:
            weights = [float(backward in added) for backward in self._backwards]
        return [
            (grad if weight == 1 else weight * grad, input)
            for backward, weight in zip(self._backwards, weights, strict=True)
            for grad, input in backward.passes
            if weight
        ]

    def stepped(self) -> None:
        """The optimizer has stepped: what is here is of the past once the next backward pass begins."""
        self._stepped = True

    def sees(self, indices: Indices) -> bool:
        """Whether a product with these indices is the layer's."""
        return self._layer.col.data_ptr() == indices.col.data_ptr()

    def keep(self, grad: Tensor, input: Tensor, of_values: Tensor) -> None:
        """Keep what a product's backward pass was given, (batch, out_features) and (batch, in_features), and gave."""
        self._hook()
        task = torch._C._current_graph_task_id()
        if not self._backwards or self._stepped or self._backwards[-1].task != task:
            if self._stepped:
                self._backwards.clear()
            self._stepped = False
            if self._was_zeroed():
                self._sum += 1
            self._backwards.append(Backward(task))
        backward = self._backwards[-1]
        # Copies, because a compiled graph or the user's loop may use the memory again.
        backward.passes.append((grad.detach().clone(), input.detach().clone()))
        of_values = of_values.detach()
        backward.gradient = of_values.clone() if backward.gradient is None else backward.gradient + of_values

    def accumulated(self) -> None:
        """The backward pass that is under way has added to `values.grad`."""
        if self._backwards and self._backwards[-1].task == torch._C._current_graph_task_id():
            self._backwards[-1].sum = self._sum
        gradient = self._gradient()
        self._left = None if gradient is None else (id(gradient), gradient._version)

    def _hook(self) -> None:
        """Have PyTorch tell when a gradient is accumulated, as soon as the values can have one."""
        values = self._layer._parameters.get("values")
        if not self._is_hooked and values is not None and values.requires_grad:
            told = partial(_accumulated, ref(self))
            finalize(self, values.register_post_accumulate_grad_hook(told).remove)  # type: ignore[no-untyped-call]
            self._is_hooked = True

    def _gradient(self) -> Tensor | None:
        values = self._layer._parameters.get("values")  # not where they are computed from others, as in pruning
        return None if values is None else values.grad

    def _was_zeroed(self) -> bool:
        """Whether what comes begins a new sum: where a gradient is zero by itself it does not."""
        gradient = self._gradient()
        return gradient is None or ((id(gradient), gradient._version) != self._left and not bool(gradient.any()))


def _weights(backwards: list[Backward], added: list[Backward], gradient: Tensor) -> list[float]:
    """How much of each backward pass is in `gradient`: 0 for those that have no part in it."""
    own = torch.stack([b.gradient for b in backwards if b.gradient is not None and len(b.gradient) == len(gradient)])
    taken = [float(backward in added) for backward in backwards]
    if len(own) != len(backwards):  # the number of connections has changed in between
        return taken
    target, own = gradient.double(), own.double()
    if added and _distance(torch.tensor(taken, dtype=torch.float64, device=own.device) @ own, target) < CLOSE:
        return taken
    parts = torch.linalg.lstsq((own @ own.t()).cpu(), (own @ target).cpu()[:, None], driver="gelsd").solution[:, 0]
    if not _distance(parts.to(own) @ own, target) < (CLOSE if added else FAR):  # or it is no number
        return taken
    parts = parts / parts.abs().max()
    parts[parts.abs() < CLOSE] = 0
    parts[(parts - 1).abs() < CLOSE] = 1
    found: list[float] = parts.tolist()
    return found


def _distance(one: Tensor, other: Tensor) -> float:
    """The sine of the angle between two gradients: clipping and a scaled loss do not change it."""
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).clamp(-1, 1)
    return float((1 - cosine.square()).sqrt()) if cosine > 0 else 1.0


_recorders: WeakSet[Recorder] = WeakSet()
_lock = RLock()


def record(grad: Tensor, input: Tensor, of_values: Tensor, indices: Indices) -> None:
    """Show the operands of a backward pass, and the gradient that it gave, to the recorders."""
    if _recorders:
        with _lock:  # several models may train at the same time
            alive = list(_recorders)
        for recorder in alive:
            if recorder.sees(indices):
                recorder.keep(grad, input, of_values)


def _accumulated(recorder: "ReferenceType[Recorder]", _: Tensor) -> None:
    alive = recorder()
    if alive is not None:
        alive.accumulated()
