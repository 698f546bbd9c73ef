"""`Evolution`: a drop rule, its scope, a growth rule and schedules, which make an algorithm."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import signature
from numbers import Integral
from typing import Any, ClassVar, Literal

from typing_extensions import Self

from sparsify._src.checks import check_count, check_density, check_share, described
from sparsify._src.evolution.drop import DropRule, magnitude
from sparsify._src.evolution.growth import GrowthRule, uniformly
from sparsify._src.evolution.schedules import Schedule, cosine, cubic
from sparsify._src.evolution.scopes import Scope, per_sign
from sparsify._src.ready_made import DROP, GROW, INTERVAL, SCHEDULE, SCOPE, check_rule, may_be_rule
from sparsify._src.written import Shown, as_typed

Interval = int | Callable[[int], bool] | Literal["auto"] | None

FRACTION = 0.3
"""The drop fraction where the user gives none. See docs/accuracy.md, "How SET's defaults were chosen"."""

EVOLUTIONS = 20
"""How many evolutions there are at least, in a training that has as many steps."""

RULES = {"drop": DROP, "scope": SCOPE, "grow": GROW}
"""Options of an `Evolution` that are rules, and their kinds."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Evolution(metaclass=Shown):
    """Drop `drop_fraction` of the connections and grow as many, after each optimizer step that is due.

    Any algorithm is one of these: a drop rule that scores connections, a scope that counts how many of the lowest go, a
    growth rule and schedules. All are plain functions, or frozen dataclasses that are called like them; see
    docs/rules.md. Algorithms are such dataclasses, too: compare them with ==, print, pickle and copy them, and change
    one by `dataclasses.replace(algorithm, interval=50)`. Their options are given by name.

    What the user leaves open follows from how long training takes: `sparsify(..., steps=...)`, see `for_steps`.

    Only what trains evolves: a layer that is frozen, in no param group, with a learning rate of 0, or without a
    gradient since the last evolution keeps topology and values.

    Args:
        interval: evolve after optimizer step k when k is a multiple of it; or a callable step -> bool, asked once for
            each step, before it begins (in distributed training its answer must be the same on every rank); or None:
            only when `optimizer.evolve()` is called. "auto": 20 evolutions until `until`, but no more than every 200
            steps; where there is no `until`, after steps 201, 401, ..., so that a model that is evaluated after a round
            number of steps has long recovered.
        drop_fraction: share of the active connections dropped at one evolution (the paper's ζ), in [0, 1]; or a
            callable step -> fraction. None: 0.3, annealed to zero at `until` by a cosine (constant where there is no
            `until`).
        until: last optimizer step after which evolution may come; None for no end.
        start_density: training begins with this density, over the layers of the target and shared out like it; None
            begins at the target.
        surplus: with a start density: step -> share of the connections beyond the target's that are left. None: along a
            cubic, down to none at `until`.
        drop: the drop rule, layer -> scores: `magnitude`, `saliency` or `sparing_units(...)`.
        scope: over what the fraction counts: `per_sign`, `per_layer` or `across_layers`.
        grow: the growth rule, (layer, count) -> places: `uniformly`, `by_gradient`, `mixed(...)`, ...
    Raises:
        ValueError, TypeError: an argument is out of range or of another type, or not given by name.
    Example:
        >>> Evolution(interval=200, drop_fraction=cosine(0.3, 45_000), scope=per_layer)
        Evolution(interval=200, drop_fraction=cosine(0.3, 45000), scope=per_layer)
    """

    interval: Interval = "auto"
    drop_fraction: float | Schedule | None = None
    until: int | None = None
    start_density: float | None = None
    surplus: Schedule | None = None
    drop: DropRule = magnitude
    scope: Scope = per_sign
    grow: GrowthRule = uniformly
    longest_interval: ClassVar[int] = 200
    share_of_steps: ClassVar[float] = 0.75
    __repr__ = as_typed

    def __new__(cls, *by_position: object, **options: Any) -> Self:
        try:
            signature(cls.__init__).bind(None, *by_position, **options)
        except TypeError:
            pass
        else:
            return super().__new__(cls)
        names = [option.name for option in fields(cls) if option.init]
        listed = ", ".join(names) or "none"
        if by_position:
            raise TypeError(
                f"{cls.__name__} takes its options by name, got {by_position[0]!r}. They are: {listed}. until and "
                "interval count optimizer steps; how many there are in all is steps= of sparsify()."
            )
        unknown = next(name for name in options if name not in names)
        here = "an option of sparsify()" if unknown in OF_SPARSIFY else "no option of it"
        raise TypeError(f"{cls.__name__} must get options of its own, got {unknown}, {here}. Its are: {listed}.")

    def __post_init__(self) -> None:
        if may_be_rule(self.interval) and self.interval != "auto":
            check_rule("interval", self.interval, INTERVAL, 'a whole number of optimizer steps, "auto", None')
        elif self.interval not in (None, "auto"):
            check_steps("interval", self.interval, 1)
        if self.until is not None:
            check_steps("until", self.until, 0)
        if may_be_rule(self.drop_fraction):
            check_rule("drop_fraction", self.drop_fraction, SCHEDULE, "a number in [0, 1]")
        elif self.drop_fraction is not None:
            check_fraction(self.drop_fraction)
        if self.start_density is not None:
            check_density(self.start_density, argument="start_density")
        if self.surplus is not None and self.start_density is None:
            raise ValueError("start_density must be given with surplus: it is where pruning begins.")
        for name, kind in RULES.items():
            check_rule(name, getattr(self, name), kind)
        if self.surplus is not None:
            check_rule("surplus", self.surplus, SCHEDULE)

    @property
    def prunes(self) -> bool:
        """Whether it begins with more connections than it ends with."""
        return self.start_density is not None

    @property
    def pruning(self) -> Schedule | None:
        """Where it prunes and knows how: step -> share of the connections beyond the target's that are left."""
        if self.surplus is not None or not self.prunes or not self.target_step:
            return self.surplus
        return cubic(1.0, self.target_step)

    @property
    def target_step(self) -> int | None:
        """Where it prunes: the optimizer step at which the target is reached; None where that is not known."""
        return self.until

    def for_steps(self, steps: int) -> Self:
        """The same for a training of so many optimizer steps: what was left open follows from them.

        Evolution ends at 3/4 of the steps (gradual magnitude pruning at half of them), comes at least 20 times, and
        drops less and less. What the user has given stays. `sparsify(..., steps=steps)` calls this.

        Args:
            steps: of the optimizer, in the whole training.
        Returns:
            an algorithm whose `interval` and `until` are numbers, unless the user had set them otherwise.
        Raises:
            ValueError, TypeError: steps is below 1 or no whole number; evolution could never come in so many steps, or
                pruning would not reach its target.
        Example:
            >>> SET().for_steps(300), RigL().for_steps(60_000)
            (SET(interval=11, until=225), RigL(interval=100, until=45000))
        """
        check_steps("steps", steps, 1)
        if self.interval is None:
            return self
        until = max(1, int(self.share_of_steps * steps)) if self.until is None else self.until
        whole = replace(self, until=until)
        if self.interval == "auto":
            whole = replace(whole, interval=whole.every)
        if self.prunes and until > steps:
            raise ValueError(
                f"until must be at most steps, got {self!r} for {steps} steps: training would end before pruning does. "
                "Leave until out: it follows from steps."
            )
        if isinstance(whole.interval, int) and not self.prunes and whole.interval > min(until, steps):
            raise ValueError(
                f"interval must be at most until and steps, got {whole!r} for {steps} steps: evolution would never "
                "come. Leave interval and until out: they follow from steps."
            )
        return whole

    def check_complete(self) -> None:
        """Raise ValueError unless it is known when pruning ends."""
        if self.prunes and self.pruning is None:
            name = type(self).__name__
            raise ValueError(
                f"evolution must know when pruning ends, got {self!r}. Say how many optimizer steps the training has: "
                f"sparsify(..., steps=...); or when: {name}(until=...)."
            )

    @property
    def every(self) -> int | Callable[[int], bool] | None:
        """The interval, as a number where it follows from `until`."""
        if self.interval != "auto":
            return self.interval
        if self.until is None:
            return self.longest_interval
        return max(1, min(self.longest_interval, self.until // EVOLUTIONS))

    def due(self, step: int) -> bool:
        """Whether evolution comes after optimizer step `step` (the first step is 1)."""
        if self.until is not None and step > self.until:
            return False
        if self.prunes and step == self.until and self.interval is not None:
            return True  # so that pruning reaches its target, whatever the interval
        return self._comes(step)

    def is_late(self, step: int) -> bool:
        """Whether step `step` is one that would be due but for `until`."""
        return self.until is not None and step > self.until and self._comes(step)

    def _comes(self, step: int) -> bool:
        interval = self.every
        if callable(interval):
            return _truth(interval(step), step)
        if interval is None:
            return False
        if self.interval == "auto" and self.until is None:  # evaluations come after round numbers of steps
            return step > 1 and (step - 1) % interval == 0
        return step % interval == 0

    def fraction(self, step: int) -> float:
        """The drop fraction after optimizer step `step`."""
        fraction = self.drop_fraction
        if fraction is None:
            fraction = cosine(FRACTION, self.until) if self.until else FRACTION
        if callable(fraction):
            return check_share("drop_fraction", fraction(step), f" at step {step}")
        return check_fraction(fraction)

    def connections(self, step: int, start: int, target: int) -> int:
        """How many connections a layer should have after step `step`, of `start` at first and `target` in the end."""
        if self.pruning is None:
            return target
        return target + round(check_share("surplus", self.pruning(step), f" at step {step}") * (start - target))


OF_SPARSIFY = "density steps distribution skip kinds start grown_values grown_state on_evolve seed".split()
"""Options of `sparsify`, which people look for in algorithms."""


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
