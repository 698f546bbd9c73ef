"""A bar on the terminal while work of our own takes long: drawing huge topologies, measuring a machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sparsify._src.distributed import is_first

DELAY = 2.0
"""Seconds after which a bar is shown."""


@contextmanager
def shown(what: str, total: int, unit: str = "", at_once: bool = False) -> Iterator[Callable[[int], object]]:
    """Show how far a piece of work is, which the block tells by calling what it is given: `advance(how_much)`.

    There is a bar where tqdm is installed and stderr is a terminal, on rank 0, as soon as DELAY seconds have passed. It
    vanishes when the work is done. Elsewhere nothing is shown, and the work is the same.

    Args:
        what: is done.
        total: of all that is to be done.
        unit: in which `total` is counted.
        at_once: whether to show it from the beginning, because even the first part of the work takes long.
    """
    kind = _tqdm() if is_first() and sys.stderr is not None and sys.stderr.isatty() else None
    if kind is None:
        yield lambda _: None
        return
    delay = 0.0 if at_once else DELAY
    with kind(total=total, desc=what, unit=unit, unit_scale=True, delay=delay, leave=False, file=sys.stderr) as bar:
        yield bar.update


def _tqdm() -> Callable[..., Any] | None:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm  # type: ignore[no-any-return]
