"""Tells which call of `step()` counts where optimizers call one another: the outermost."""

import sys
from types import FrameType

import wrapt
from torch.optim import Optimizer

from sparsify._src.torch_private import calls_hooks
from sparsify._src.training import holders

TRAINERS = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}
"""Packages that wrap optimizers on their own, and save what they wrap."""


def is_of_a_trainer(value: object) -> bool:
    """Whether `value` is an optimizer that a trainer has wrapped."""
    return type(value).__module__.partition(".")[0] in TRAINERS


def tells_of_steps(optimizer: object) -> bool:
    """Whether `step()` calls the hooks that are registered: so it is where Optimizer.__init__ was called."""
    return isinstance(optimizer, Optimizer) and calls_hooks(optimizer)


def optimizers_that_step_this() -> list[object]:
    """The optimizers whose methods call this `step()`: wrappers that were made after `sparsify` was called."""
    found: list[object] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            value = frame.f_locals.get("self")
            if holders.is_optimizer(value) and not isinstance(value, wrapt.ObjectProxy) and not is_of_a_trainer(value):
                found.append(value)
        frame = frame.f_back
    return found


def changes_nothing(optimizer: Optimizer) -> bool:
    """Whether a step would only make the optimizer's buffers, as torch.distributed.checkpoint does before it loads."""
    groups = optimizer.param_groups
    if any("lr" not in group or group["lr"] for group in groups):
        return False
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not any(grad.any() for grad in grads)


class Calls:
    """The calls of an optimizer's `step()` that are under way.

    A subclass whose `step()` calls `super().step()` runs the hooks of both, and only the outermost is a step.

    running: their frames, the outermost first.
    in_vain: whether this step changes no parameter, and does not count.
    around: whether a method of an optimizer that holds others is under way.
    stepped: whether one of these others has stepped in it.
    """

    def __init__(self) -> None:
        self.running: list[FrameType] = []
        self.in_vain = False
        self.around = False
        self.stepped = False

    def begin(self) -> None:
        """A call of `step()` begins; its hook calls this."""
        frame = sys._getframe(2)
        while "_dynamo" in frame.f_code.co_filename and frame.f_back is not None:  # keeps torch.compile out of the hook
            frame = frame.f_back
        if self.running:  # or an exception has ended them
            self.running = [outer for outer in self.running if _is_running(outer)]
        self.running.append(frame)


def _is_running(frame: FrameType) -> bool:
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is frame
