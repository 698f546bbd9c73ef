"""Schedules: callables of the optimizer step without state, so that a resumed run follows them exactly."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from sparsify._src.checks import check_count, check_number, check_share
from sparsify._src.written import as_typed

Schedule = Callable[[int], float]
"""optimizer step -> value."""


@dataclass(frozen=True, repr=False)
class constant:  # schedules are written like functions
    """`value` at every step.

    Args:
        value: such as a drop fraction.
    Example:
        >>> constant(0.3)(500)
        0.3
    """

    value: float
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def __call__(self, step: int) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True, repr=False)
class _Ramp:
    """What goes from `start` to `end` over `steps` optimizer steps."""

    start: float
    steps: int
    end: float = 0.0
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_count("steps", self.steps, 1, " of optimizer steps")
        check_number("end", self.end)

    def _way(self, step: int) -> float:
        """How much of the way is gone after optimizer step `step`, in [0, 1]."""
        return min(1.0, step / self.steps)


class linear(_Ramp):
    """From `start` to `end` in a straight line over `steps` optimizer steps; `end` from then on.

    Args:
        start: at step 0.
        steps: how many optimizer steps it takes.
        end: from then on.
    Raises:
        ValueError, TypeError: steps is below 1, or no whole number.
    Example:
        >>> linear(0.5, 1000)(500)
        0.25
    """

    def __call__(self, step: int) -> float:
        """The value after optimizer step `step`."""
        return self.start + (self.end - self.start) * self._way(step)


class cosine(_Ramp):
    """From `start` to `end` along half a cosine over `steps` optimizer steps; `end` from then on.

    Args:
        start: at step 0.
        steps: how many optimizer steps it takes.
        end: from then on.
    Raises:
        ValueError, TypeError: steps is below 1, or no whole number.
    Example:
        RigL's; from step 1000 on it is 0.
        >>> round(cosine(0.3, 1000)(500), 6)
        0.15

    Source: Dettmers and Zettlemoyer 2019 (arXiv:1907.04840); Evci et al. 2020 (arXiv:1911.11134).
    """

    def __call__(self, step: int) -> float:
        """The value after optimizer step `step`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._way(step))) / 2


@dataclass(frozen=True, repr=False)
class cubic:
    """The share of a model's surplus connections that gradual pruning has left: 1 up to `begin`, 0 from `end` on.

    Args:
        begin, end: in optimizer steps.
    Raises:
        ValueError: not 0 <= begin < end.
    Example:
        >>> cubic(100, 300)(200)
        0.125

    Source: Zhu and Gupta 2017 (arXiv:1710.01878).
    """

    begin: int
    end: int
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_number("begin", self.begin)
        check_number("end", self.end)
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"pruning must begin at 0 or later and before it ends, got begin {self.begin} and end {self.end}."
            )

    def __call__(self, step: int) -> float:
        """The share that is left after optimizer step `step`."""
        return (1 - min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))) ** 3


@dataclass(frozen=True, repr=False)
class coin:
    """Flip a coin at each optimizer step: evolution comes with `probability`, at steps that `seed` fixes.

    The coin has no state: step k falls the same way in every process and after every resume.

    Args:
        probability: in [0, 1]; 0.05 is an evolution each 20 optimizer steps on average.
        seed: chooses the stream.
    Returns:
        a callable step -> bool for `interval`.
    Raises:
        ValueError, TypeError: probability is outside [0, 1], or no number.
    Example:
        >>> [step for step in range(1, 60) if coin(0.05)(step)]
        [39, 54]
    """

    probability: float
    seed: int = 0
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_share("probability", self.probability)

    def __call__(self, step: int) -> bool:
        """Whether evolution comes after optimizer step `step`."""
        return random.Random(f"coin/{self.seed}/{step}").random() < float(self.probability)
