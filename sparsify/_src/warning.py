"""Warnings that point to the line of the user's that they are about."""

import sys
import warnings
from types import FrameType

PASSED_OVER = ("sparsify", "torch", "wrapt", "contextlib", "functools")
"""Packages whose lines a warning does not point to."""


def warn(message: str) -> None:
    """Warn of `message` at the innermost line that is neither ours nor PyTorch's."""
    level, frame = 1, sys._getframe()
    outer: FrameType | None = frame.f_back
    while outer is not None:
        level += 1
        if outer.f_globals.get("__name__", "").partition(".")[0] not in PASSED_OVER:
            break
        outer = outer.f_back
    warnings.warn(message, stacklevel=level)
