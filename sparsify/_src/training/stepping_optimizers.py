"""`SteppingOptimizers`: the optimizer that is evolved, and those that were found to step it."""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor

from sparsify._src.training import holders
from sparsify._src.training.optimizer_state import Kept
from sparsify._src.training.resting import able


class SteppingOptimizers:
    """The optimizer that was wrapped, and others made around it since. What any of them keeps moves with evolution.

    Args:
        optimizer: the one that was wrapped; it may hold others.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._around: list[ReferenceType[Any]] = []

    def notice(self, around: Iterable[object]) -> None:
        """These optimizers step the one that was wrapped."""
        known = {id(each) for each in holders.optimizers(*self._roots())}
        self._around += [ref(each) for each in around if id(each) not in known]

    def kept(self) -> Kept:
        """What they keep now."""
        return Kept(*self._roots())

    def able(self, parameters: Mapping[str, Tensor]) -> set[str]:
        """The names of these parameters that they can train: see `resting.able`."""
        return able(holders.optimizers(*self._roots()), parameters)

    def copy(self) -> "SteppingOptimizers":
        """Another that knows the same."""
        new = SteppingOptimizers(self.optimizer)
        new._around = [*self._around]
        return new

    def _roots(self) -> list[Any]:
        return [self.optimizer, *(each for reference in self._around if (each := reference()) is not None)]

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "_around": []}
