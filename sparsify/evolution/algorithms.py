"""Evolution algorithms: a drop rule, a growth rule and a schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from sparsify.evolution.drop import DropRule, weakest_per_sign
from sparsify.evolution.growth import GrowthRule, uniformly
from sparsify.initialization import GrownValues, zeros


@dataclass(frozen=True)
class Evolution:
    """Drop `drop_fraction` of each layer's connections and grow as many, after each optimizer step that is due.

    Args:
        interval: evolve after step k when k is a multiple of it; or a callable step -> bool; or None: only when
            `optimizer.evolve()` is called.
        drop_fraction: share of the active connections dropped at one evolution (the paper's ζ), in [0, 1]; or a
            callable step -> fraction.
        until: last optimizer step after which evolution may come; None for no end.
        grown_values: (count, shape, nnz, generator) -> the values grown connections start from.
        drop: the drop rule.
        grow: the growth rule.
    Raises:
        ValueError, TypeError: an argument is out of range or of another type.
    """

    interval: int | Callable[[int], bool] | None
    drop_fraction: float | Callable[[int], float] = 0.3
    until: int | None = None
    grown_values: GrownValues = zeros
    drop: DropRule = weakest_per_sign
    grow: GrowthRule = uniformly

    def __post_init__(self) -> None:
        if not callable(self.interval) and self.interval is not None:
            _check_count("interval", self.interval, 1)
        if self.until is not None:
            _check_count("until", self.until, 0)
        if not callable(self.drop_fraction):
            check_fraction(self.drop_fraction)

    def due(self, step: int) -> bool:
        """Whether evolution comes after optimizer step `step` (the first step is 1)."""
        if self.interval is None or (self.until is not None and step > self.until):
            return False
        return bool(self.interval(step)) if callable(self.interval) else step % self.interval == 0

    def fraction(self, step: int) -> float:
        """The drop fraction after optimizer step `step`."""
        return check_fraction(self.drop_fraction(step) if callable(self.drop_fraction) else self.drop_fraction)


@dataclass(frozen=True)
class SET(Evolution):
    """Sparse Evolutionary Training: drop the weakest of each sign, grow uniformly at random.

    Args:
        interval: in optimizer steps; see `Evolution`. The paper evolves once an epoch.
        drop_fraction: the paper's ζ.
        until: as in `Evolution`; the paper does not evolve after the last epoch.
        grown_values: `zeros` or `fan_in_uniform`.
    Source: Mocanu et al. 2018, Nature Communications 9:2383.
    """

    interval: int | Callable[[int], bool] | None = 200


@dataclass(frozen=True)
class Static(Evolution):
    """A fixed sparse topology: nothing is ever dropped or grown."""

    interval: int | Callable[[int], bool] | None = None
    drop_fraction: float | Callable[[int], float] = 0.0


def check_fraction(fraction: object) -> float:
    """Return a drop fraction as a float, or raise if it is not a number in [0, 1]."""
    if isinstance(fraction, bool) or not isinstance(fraction, Real):
        raise TypeError(f"drop_fraction must be a number in [0, 1], got {fraction!r}.")
    fraction = float(fraction)
    if not 0 <= fraction <= 1:
        raise ValueError(f"drop_fraction must be in [0, 1], got {fraction}.")
    return fraction


def _check_count(name: str, count: object, least: int) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{name} must be a whole number of optimizer steps, got {count!r}.")
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}.")
