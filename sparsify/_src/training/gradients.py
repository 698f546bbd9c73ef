"""`Gradients`: the gradients of evolved layers, and the backward passes that made them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsify._src.evolution.layer_view import Passes
from sparsify._src.kernels import Recorder
from sparsify._src.training.evolved_layers import EvolvedLayer

Made = tuple[Tensor, Passes]
"""A gradient (nnz,), and the operands of the backward passes that made it; none where they are not kept."""


class Gradients:
    """The gradients that the evolution which comes next may use.

    Args:
        evolved: the layers by name.
    Attributes:
        recorders: keep the operands of backward passes, where a growth rule is going to need them.
    """

    def __init__(self, evolved: Mapping[str, EvolvedLayer]) -> None:
        self._evolved = evolved
        self.recorders: dict[str, Recorder] = {}
        self._kept: dict[str, Made] | None = None

    def record(self, needed: bool) -> None:
        """Keep the operands of backward passes from now on, or no more."""
        if not needed:
            self.recorders = {}
        elif not self.recorders:
            self.recorders = {name: Recorder(each.layer) for name, each in self._evolved.items()}

    def keep(self, alone: bool) -> None:
        """Keep what is there now: an optimizer that holds the one which has stepped may zero it."""
        self._kept = {name: (gradient.clone(), list(passes)) for name, (gradient, passes) in self.made(alone).items()}

    def made(self, alone: bool) -> dict[str, Made]:
        """The gradient of each layer that has one.

        Zeros that no pass has made are what `zero_grad(set_to_none=False)` leaves of a layer without gradient.

        Args:
            alone: whether no other rank trains a replica: its passes are not here, and would be missed.
        """
        if self._kept is not None:
            return self._kept
        found: dict[str, Made] = {}
        for name, each in self._evolved.items():
            if (gradient := each.values.grad) is None:
                continue
            recorder = self.recorders.get(name)
            passes = [] if recorder is None else recorder.made(gradient, alone)
            if recorder is None or passes or bool(gradient.any()):
                found[name] = gradient, passes
        return found

    def stepped(self) -> None:
        """The optimizer has stepped."""
        for recorder in self.recorders.values():
            recorder.stepped()

    def end_step(self) -> None:
        """A step is over, with the evolution that may have come with it."""
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_evolved": self._evolved, "recorders": {}, "_kept": None}
