"""`Evolution`: a drop rule, its scope, a growth rule and schedules, which make an algorithm."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from sparsify._src.checks import check_count, check_density, check_share, described
from sparsify._src.evolution.drop import DropRule, magnitude
from sparsify._src.evolution.grown_values import GrownValues, zeros
from sparsify._src.evolution.growth import GrowthRule, uniformly
from sparsify._src.evolution.schedules import Schedule
from sparsify._src.evolution.scopes import Scope, per_sign
from sparsify._src.ready_made import DROP, GROW, GROWN_VALUES, INTERVAL, SCHEDULE, SCOPE, check_rule, may_be_rule
from sparsify._src.written import as_typed

Interval = int | Callable[[int], bool] | None

RULES = {"grown_values": GROWN_VALUES, "drop": DROP, "scope": SCOPE, "grow": GROW}
"""Options of an `Evolution` that are rules, and their kinds."""


@dataclass(frozen=True, repr=False)
class Evolution:
    """Drop `drop_fraction` of the connections and grow as many, after each optimizer step that is due.

    Any algorithm is one of these: a drop rule that scores connections, a scope that counts how many of the lowest go, a
    growth rule and schedules. All are plain functions, or frozen dataclasses that are called like them; see README, "An
    algorithm of your own". Algorithms are such dataclasses, too: compare them with ==, print, pickle and copy them, and
    change one by `dataclasses.replace(algorithm, interval=50)`.

    Only what trains evolves: a layer that is frozen, in no param group, with a learning rate of 0, or without a
    gradient since the last evolution keeps topology and values.

    Args:
        interval: evolve after step k when k is a multiple of it; or a callable step -> bool, asked once for each step,
            before it begins (in distributed training its answer must be the same on every rank); or None: only when
            `optimizer.evolve()` is called.
        drop_fraction: share of the active connections dropped at one evolution (the paper's ζ), in [0, 1]; or a
            callable step -> fraction, such as `cosine(0.3, steps)`.
        until: last optimizer step after which evolution may come; None for no end.
        grown_values: (count, shape, nnz, generator) -> the values grown connections start from.
        drop: the drop rule, layer -> scores: `magnitude`, `saliency` or `sparing_units(...)`.
        scope: over what the fraction counts: `per_sign`, `per_layer` or `across_layers`.
        grow: the growth rule, (layer, count) -> places: `uniformly`, `by_gradient`, `mixed(...)`, ...
        start_density: training begins with this density, over the layers of the target and shared out like it; None
            begins at the target.
        surplus: with a start density: step -> share of the connections beyond the target's that are left, such as
            `cubic(begin, end)`.
    Raises:
        ValueError, TypeError: an argument is out of range or of another type.
    Example:
        >>> Evolution(200, drop_fraction=cosine(0.3, 45_000), scope=per_layer)
        Evolution(200, drop_fraction=cosine(0.3, 45000), scope=per_layer)
    """

    interval: Interval
    drop_fraction: float | Schedule | None = 0.3  # None is RigL's and GraNet's
    until: int | None = None
    grown_values: GrownValues = zeros
    drop: DropRule = magnitude
    scope: Scope = per_sign
    grow: GrowthRule = uniformly
    start_density: float | None = None
    surplus: Schedule | None = None
    __repr__ = as_typed

    def __post_init__(self) -> None:
        if may_be_rule(self.interval):
            check_rule("interval", self.interval, INTERVAL, "a whole number of optimizer steps, None")
        elif self.interval is not None:
            check_steps("interval", self.interval, 1)
        if self.until is not None:
            check_steps("until", self.until, 0)
        if may_be_rule(self._fraction):
            check_rule("drop_fraction", self._fraction, SCHEDULE, "a number in [0, 1]")
        else:
            check_fraction(self._fraction)
        if self.start_density is not None:
            check_density(self.start_density, argument="start_density")
        if (self.start_density is None) != (self.surplus is None):
            raise ValueError("start_density and surplus must be given together: where pruning begins, and how it goes.")
        for name, kind in RULES.items():
            check_rule(name, getattr(self, name), kind)
        if self.surplus is not None:
            check_rule("surplus", self.surplus, SCHEDULE)

    def due(self, step: int) -> bool:
        """Whether evolution comes after optimizer step `step` (the first step is 1)."""
        if self.until is not None and step > self.until:
            return False
        if self.surplus is not None and step == self.until and self.interval is not None:
            return True  # so that pruning reaches its target, whatever the interval
        return self._comes(step)

    def is_late(self, step: int) -> bool:
        """Whether step `step` is one that would be due but for `until`."""
        return self.until is not None and step > self.until and self._comes(step)

    def _comes(self, step: int) -> bool:
        if callable(self.interval):
            return _truth(self.interval(step), step)
        return self.interval is not None and step % self.interval == 0

    def fraction(self, step: int) -> float:
        """The drop fraction after optimizer step `step`."""
        fraction = self._fraction
        if not callable(fraction):
            return check_fraction(fraction)
        return check_share("drop_fraction", fraction(step), f" at step {step}")

    @property
    def _fraction(self) -> float | Schedule | None:
        """Where the drop fraction comes from."""
        return self.drop_fraction

    def connections(self, step: int, start: int, target: int) -> int:
        """How many connections a layer should have after step `step`, of `start` at first and `target` in the end."""
        if self.surplus is None:
            return target
        return target + round(check_share("surplus", self.surplus(step), f" at step {step}") * (start - target))


def check_fraction(fraction: object) -> float:
    """Return a drop fraction as a float, or raise if it is not a number in [0, 1]."""
    return check_share("drop_fraction", fraction)


def check_steps(argument: str, steps: object, least: int) -> None:
    """Raise unless `steps` is a whole number of optimizer steps, at least `least`."""
    check_count(argument, steps, least, " of optimizer steps")


def _truth(answer: object, step: int) -> bool:
    """What an interval answers: True or False, a whole number, or None; in a tensor or an array of one too."""
    try:
        plain = answer.item() if hasattr(answer, "item") else answer
    except (RuntimeError, ValueError):  # more than one
        plain = answer
    if plain is not None and not isinstance(plain, Integral):
        raise TypeError(f"interval must answer True or False, got {described(answer)} at step {step}.")
    return bool(plain)
