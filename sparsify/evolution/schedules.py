"""Schedules: plain functions of the optimizer step, without state, so that a resumed run follows them exactly."""

import math
import random
from collections.abc import Callable
from functools import partial

from sparsify.evolution.layer_view import check_count, check_share

Schedule = Callable[[int], float]
"""optimizer step -> value."""


def constant(value: float) -> Schedule:
    """`value` at every step."""
    return partial(_line, value, value, 1)


def linear(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From `start` to `end` in a straight line over `steps` optimizer steps; `end` from then on.

    Raises:
        ValueError: steps is below 1.
    """
    return partial(_line, start, end, _checked(steps))


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From `start` to `end` along half a cosine over `steps` optimizer steps; `end` from then on.

    Raises:
        ValueError: steps is below 1.
    Example:
        RigL's cosine(0.3, 1000): 0.3 at step 0, 0.15 at 500, 0 from 1000 on
    Source: Dettmers and Zettlemoyer 2019 (arXiv:1907.04840); Evci et al. 2020 (arXiv:1911.11134).
    """
    return partial(_cosine, start, end, _checked(steps))


def cubic(begin: int, end: int) -> Schedule:
    """The share of a model's surplus connections that gradual pruning has left: 1 up to `begin`, 0 from `end` on.

    Args:
        begin, end: in optimizer steps.
    Raises:
        ValueError: not 0 <= begin < end.
    Source: Zhu and Gupta 2017 (arXiv:1710.01878).
    """
    if not 0 <= begin < end:
        raise ValueError(f"pruning must begin at 0 or later and before it ends, got begin {begin} and end {end}.")
    return partial(_cubic, begin, end)


def coin(probability: float, seed: int = 0) -> Callable[[int], bool]:
    """Flip a coin at each optimizer step: evolution comes with `probability`, at steps that `seed` fixes.

    The coin has no state: step k falls the same way in every process and after every resume.

    Args:
        probability: in [0, 1]; 0.05 is an evolution each 20 optimizer steps on average.
        seed: chooses the stream.
    Returns:
        a callable step -> bool for `interval`.
    Raises:
        ValueError: probability is outside [0, 1].
    """
    return partial(_heads, check_share("probability", probability), seed)


def _line(start: float, end: float, steps: int, step: int) -> float:
    return start + (end - start) * min(1.0, step / steps)


def _cosine(start: float, end: float, steps: int, step: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def _cubic(begin: int, end: int, step: int) -> float:
    return (1 - min(1.0, max(0.0, (step - begin) / (end - begin)))) ** 3


def _heads(probability: float, seed: int, step: int) -> bool:
    return random.Random(f"coin/{seed}/{step}").random() < probability


def _checked(steps: int) -> int:
    check_count("steps", steps, 1, " of optimizer steps")
    return steps
