"""The ready-made algorithms: each is an `Evolution` of a few parts."""

from dataclasses import dataclass, field

from sparsify._src.evolution.drop import DropRule
from sparsify._src.evolution.evolution import Evolution, Interval, check_steps
from sparsify._src.evolution.grown_values import GrownValues, zeros
from sparsify._src.evolution.growth import GrowthRule, by_gradient
from sparsify._src.evolution.schedules import Schedule, cosine, cubic
from sparsify._src.evolution.scopes import Scope, per_layer


@dataclass(frozen=True, init=False, repr=False)
class _Named(Evolution):
    """An algorithm with a name: the options that its constructor does not take are fixed, or derived from the others.

    They are `init=False`, so that `dataclasses.replace` derives them anew.
    """

    grown_values: GrownValues = field(init=False)
    drop: DropRule = field(init=False)
    scope: Scope = field(init=False)
    grow: GrowthRule = field(init=False)
    start_density: float | None = field(init=False)
    surplus: Schedule | None = field(init=False)


@dataclass(frozen=True, init=False, repr=False)
class SET(_Named):
    """Sparse Evolutionary Training: drop the weakest of each sign, grow uniformly at random.

    Args:
        interval: in optimizer steps; see `Evolution`. The paper evolves once an epoch.
        drop_fraction: the paper's ζ, or a callable step -> fraction.
        until: last optimizer step after which evolution may come; the paper does not evolve after the last epoch.
        grown_values: `zeros` or `fan_in_uniform`.
    Example:
        >>> SET(interval=600, until=30_000)
        SET(600, until=30000)

    Source: Mocanu et al. 2018, Nature Communications 9:2383.
    """

    interval: Interval = 200
    grown_values: GrownValues = zeros

    def __init__(
        self,
        interval: Interval = 200,
        drop_fraction: float | Schedule = 0.3,
        until: int | None = None,
        grown_values: GrownValues = zeros,
    ) -> None:
        super().__init__(interval, drop_fraction, until, grown_values)


@dataclass(frozen=True, init=False, repr=False)
class RigL(_Named):
    """Drop the weakest of each layer, grow where the gradient of the dense weight is largest, at zero.

    The dense gradient is never held (see `by_gradient`). What was just dropped is not grown again in the same
    evolution, and the optimizer's step before an evolution is taken, where the authors' code skips it.

    Args:
        interval: in optimizer steps. With None the layers keep the operands of every backward pass.
        drop_fraction: None: 0.3, annealed to zero at `until` by a cosine (constant where there is no `until`).
        until: last optimizer step after which evolution may come; the paper's is 3/4 of training.
        grow: `by_gradient`, `by_gradient_among(n)` for layers too large for it, or `mixed(...)`.
    Example:
        >>> RigL(until=1000).fraction(500)
        0.15

    Source: Evci et al. 2020, "Rigging the lottery" (arXiv:1911.11134).
    """

    interval: Interval = 100
    drop_fraction: float | Schedule | None = None
    grow: GrowthRule = by_gradient

    def __init__(
        self,
        interval: Interval = 100,
        drop_fraction: float | Schedule | None = None,
        until: int | None = None,
        grow: GrowthRule = by_gradient,
    ) -> None:
        super().__init__(interval, drop_fraction, until, scope=per_layer, grow=grow)

    @property
    def _fraction(self) -> float | Schedule:
        return _annealed(self.drop_fraction, self.until)


@dataclass(frozen=True, init=False, repr=False)
class GMP(_Named):
    """Gradual magnitude pruning: from `start_density` down to the target along a cubic; nothing grows.

    A layer that does not train is not pruned. Once it trains again it catches up at the next evolution; where that is
    later than `until`, at the next step that the interval names.

    Args:
        until: optimizer step at which the target is reached.
        begin: optimizer step at which pruning begins.
        interval: in optimizer steps.
        start_density: at first; 1 begins dense.
        scope: `per_layer` gives each layer its own target, `across_layers` prunes the weakest of the whole model.
    Example:
        >>> from dataclasses import replace
        >>> replace(GMP(30_000), until=45_000).surplus
        cubic(0, 45000)

    Source: Zhu and Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878).
    """

    begin: int = 0
    interval: Interval = 100
    drop_fraction: float | Schedule | None = field(init=False)
    start_density: float | None = 1.0
    scope: Scope = per_layer

    def __init__(
        self,
        until: int,
        begin: int = 0,
        interval: Interval = 100,
        start_density: float = 1.0,
        scope: Scope = per_layer,
    ) -> None:
        check_steps("begin", begin, 0)
        check_steps("until", until, 1)
        object.__setattr__(self, "begin", begin)
        schedule = cubic(begin, until)
        super().__init__(interval, 0.0, until, scope=scope, start_density=start_density, surplus=schedule)


@dataclass(frozen=True, init=False, repr=False)
class GraNet(_Named):
    """RigL that begins denser: prunes along a cubic from `start_density` to the target, and evolves all the while.

    The most accurate algorithm of those measured for the README, at the price of a denser beginning. A layer that does
    not train catches up with pruning as under `GMP`.

    Args:
        until: last optimizer step after which evolution may come; 3/4 of training is good.
        prune_until: optimizer step at which the target is reached; None: two thirds of `until`.
        interval: in optimizer steps.
        drop_fraction: as in `RigL`.
        start_density: at first, which is what memory must hold.
        scope: `per_layer` or `across_layers`.
        grow: as in `RigL`.
    Example:
        >>> algorithm = GraNet(until=900)
        >>> [algorithm.connections(step, start=500, target=20) for step in (0, 300, 600)]
        [500, 80, 20]

    Source: Liu et al. 2021, "Sparse training via boosting pruning plasticity with neuroregeneration"
        (arXiv:2106.10404).
    """

    prune_until: int | None = None
    interval: Interval = 200
    drop_fraction: float | Schedule | None = None
    start_density: float | None = 0.5
    scope: Scope = per_layer
    grow: GrowthRule = by_gradient

    def __init__(
        self,
        until: int,
        prune_until: int | None = None,
        interval: Interval = 200,
        drop_fraction: float | Schedule | None = None,
        start_density: float = 0.5,
        scope: Scope = per_layer,
        grow: GrowthRule = by_gradient,
    ) -> None:
        check_steps("until", until, 1)
        if prune_until is not None:
            check_steps("prune_until", prune_until, 1)
        object.__setattr__(self, "prune_until", prune_until)
        schedule = cubic(0, until * 2 // 3 if prune_until is None else prune_until)
        super().__init__(
            interval, drop_fraction, until, scope=scope, grow=grow, start_density=start_density, surplus=schedule
        )

    @property
    def _fraction(self) -> float | Schedule:
        return _annealed(self.drop_fraction, self.until)


@dataclass(frozen=True, init=False, repr=False)
class Static(_Named):
    """A fixed sparse topology: nothing is ever dropped or grown.

    Example:
        >>> Static().due(step=100)
        False
    """

    interval: Interval = field(init=False)
    drop_fraction: float | Schedule | None = field(init=False)
    until: int | None = field(init=False)

    def __init__(self) -> None:
        super().__init__(interval=None, drop_fraction=0.0)


def _annealed(drop_fraction: float | Schedule | None, until: int | None) -> float | Schedule:
    """RigL's cosine where the user gave no fraction."""
    if drop_fraction is not None:
        return drop_fraction
    return cosine(0.3, until) if until else 0.3
