"""`Swap`: several changes that happen all or none, whatever interrupts them."""

from collections.abc import Callable, Iterable
from functools import wraps
from threading import RLock
from typing import ParamSpec, Protocol, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Change = Callable[[], None]
"""Puts something that is ready in its place. It fails only where PyTorch does, and may be called again."""

LOCK = RLock()
"""Whoever changes what a layer is made of holds this; it takes well under a millisecond, many steps apart."""


class Swapped(Protocol):
    """What a swap changes. It calls `settle(self)` before it reads itself."""

    swap: "Swap | None"


class Swap:
    """Several changes that happen all or none, whatever interrupts them: an exception, a signal, a lack of memory.

    All that can fail (rules, checks, memory) comes before, when the changes are prepared. `commit` then carries them
    out in one go. What interrupts it before its first change finds all as it was; what interrupts it later finds the
    changes carried out after all: at once, or where that is interrupted too, by whoever next reads what they change.

    Args:
        changes: in the order in which to carry them out.
        owners: whatever they change.
    """

    def __init__(self, changes: Iterable[Change], owners: Iterable[Swapped]) -> None:
        self._changes, self._owners = list(changes), list(owners)
        self.under_way = False

    def commit(self) -> None:
        """Carry out the changes."""
        with LOCK:
            try:
                for owner in self._owners:
                    owner.swap = self
                self.under_way = True  # before this nothing has changed, after it all will be
                self._carry_out()
            except BaseException:
                self._carry_out() if self.under_way else self._let_go()
                raise

    def settle(self) -> None:
        """Carry out what an interruption has left; wait where another thread is at it."""
        with LOCK:
            if self.under_way:
                self._carry_out()

    def _carry_out(self) -> None:
        for change in self._changes:
            if self.under_way:  # not, where a signal handler has read a layer meanwhile, and so settled it
                change()
        self.under_way = False
        self._let_go()

    def _let_go(self) -> None:
        owners, self._owners, self._changes = self._owners, [], []
        for owner in owners:
            owner.swap = None


def settle(owner: Swapped) -> None:
    """Carry out what an interrupted swap has left to do on `owner`."""
    swap = owner.swap
    if swap is not None:
        swap.settle()


def leaving_grad_mode(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Have `work` leave gradients on or off as it found them: a signal within torch.no_grad() may leave them off."""

    @wraps(work)
    def whatever_interrupts(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        before = torch.is_grad_enabled()
        try:
            return work(*args, **kwargs)
        finally:
            if torch.is_grad_enabled() != before:
                torch.set_grad_enabled(before)

    return whatever_interrupts
