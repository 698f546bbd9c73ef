"""Schedules: callables of the optimizer step without state, so that a resumed run follows them exactly."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sparsify._src.checks import check_count, check_number, check_share
from sparsify._src.written import as_typed

Schedule = Callable[[int], float]
"""optimizer step -> value."""

STEPS = " of optimizer steps"


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
class _Way:
    """What goes from `start` to `end` in `steps` optimizer steps, after step `begin`."""

    start: float
    steps: int
    end: float = field(default=0.0, kw_only=True)
    begin: int = field(default=0, kw_only=True)
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_count("steps", self.steps, 1, STEPS)
        check_number("end", self.end)
        check_count("begin", self.begin, 0, STEPS)

    def _gone(self, step: int) -> float:
        """How much of the way is gone after optimizer step `step`, in [0, 1]."""
        return min(1.0, max(0.0, (step - self.begin) / self.steps))


class ramp(_Way):
    """From `start` to `end` in a straight line.

    Args:
        start: the value up to step `begin`.
        steps: how many optimizer steps the way takes.
        end: the value from then on.
        begin: optimizer step at which the way begins.
    Raises:
        ValueError, TypeError: steps is below 1 or begin below 0, or one is no whole number.
    Example:
        >>> ramp(0.5, 1000)(500)
        0.25
    """

    def __call__(self, step: int) -> float:
        """The value after optimizer step `step`."""
        return self.start + (self.end - self.start) * self._gone(step)


class cosine(_Way):
    """From `start` to `end` along half a cosine.

    Args:
        start, steps, end, begin: as for `ramp`.
    Raises:
        ValueError, TypeError: as for `ramp`.
    Example:
        RigL's; from step 1000 on it is 0.
        >>> round(cosine(0.3, 1000)(500), 6)
        0.15

    Source: Dettmers and Zettlemoyer 2019 (arXiv:1907.04840); Evci et al. 2020 (arXiv:1911.11134).
    """

    def __call__(self, step: int) -> float:
        """The value after optimizer step `step`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._gone(step))) / 2


class cubic(_Way):
    """From `start` to `end` along a cubic: fast at first, slowly in the end, as gradual pruning goes.

    Args:
        start, steps, end, begin: as for `ramp`.
    Raises:
        ValueError, TypeError: as for `ramp`.
    Example:
        >>> cubic(1.0, 200, begin=100)(200)
        0.125

    Source: Zhu and Gupta 2017 (arXiv:1710.01878).
    """

    def __call__(self, step: int) -> float:
        """The value after optimizer step `step`."""
        return self.end + (self.start - self.end) * (1 - self._gone(step)) ** 3


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
    seed: int = field(default=0, kw_only=True)
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_share("probability", self.probability)

    def __call__(self, step: int) -> bool:
        """Whether evolution comes after optimizer step `step`."""
        return random.Random(f"coin/{self.seed}/{step}").random() < float(self.probability)
