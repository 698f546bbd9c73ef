"""Warnings that point to the line of the user's that they are about."""

import sys
import warnings
from types import FrameType

TRAINERS = (
    "accelerate",
    "fastai",
    "ignite",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "transformers",
    "trl",
)
"""They call the optimizer; the user's line is the one that calls them, or the hook of the user's that they call."""

AROUND = ("peft", "pytorch_optimizer", "schedulefree", "timm", "torch_ema", "torch_optimizer")
"""They wrap optimizers or models."""

PASSED_OVER = ("sparsify", "torch", "wrapt", "contextlib", "functools", "threading", *TRAINERS, *AROUND)
"""Packages whose lines a warning does not point to."""


def warn(message: str) -> None:
    """Warn of `message` at the innermost line that is neither ours nor PyTorch's nor a trainer's."""
    level, frame = 1, sys._getframe()
    outer: FrameType | None = frame.f_back
    while outer is not None:
        level += 1
        if (outer.f_globals.get("__name__") or "").partition(".")[0] not in PASSED_OVER:
            break
        outer = outer.f_back
    warnings.warn(message, stacklevel=level)
