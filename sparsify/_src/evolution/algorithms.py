"""The ready-made algorithms: each is an `Evolution` of a few parts."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sparsify._src.checks import check_density, shown
from sparsify._src.evolution.drop import DropRule, magnitude
from sparsify._src.evolution.evolution import Evolution, Interval, check_steps
from sparsify._src.evolution.growth import GrowthRule, by_gradient, uniformly
from sparsify._src.evolution.schedules import Schedule, cubic
from sparsify._src.evolution.scopes import Scope, per_layer, per_sign


def _fixed(value: object) -> Any:
    """A part of an algorithm that is no option of it."""
    return field(init=False, default_factory=lambda: value)


@dataclass(frozen=True, repr=False, kw_only=True)
class SET(Evolution):
    """Sparse Evolutionary Training: drop the weakest of each sign, grow uniformly at random.

    Args:
        interval: in optimizer steps; see `Evolution`. The paper evolves once an epoch.
        drop_fraction: the paper's ζ, or a callable step -> fraction; see `Evolution`. The paper's is constant.
        until: last optimizer step after which evolution may come; the paper does not evolve after the last epoch.
    Example:
        >>> SET(interval=600, until=30_000)
        SET(interval=600, until=30000)

    Source: Mocanu et al. 2018, Nature Communications 9:2383.
    """

    start_density: float | None = _fixed(None)
    surplus: Schedule | None = _fixed(None)
    drop: DropRule = _fixed(magnitude)
    scope: Scope = _fixed(per_sign)
    grow: GrowthRule = _fixed(uniformly)


@dataclass(frozen=True, repr=False, kw_only=True)
class RigL(Evolution):
    """Drop the weakest of each layer, grow where the gradient of the dense weight is largest, at zero.

    The dense gradient is never held (see `by_gradient`). What was just dropped is not grown again in the same
    evolution, and the optimizer's step before an evolution is taken, where the authors' code skips it.

    Args:
        interval: in optimizer steps; "auto" is at most 100. With None the layers keep the operands of every backward
            pass.
        drop_fraction: see `Evolution`.
        until: last optimizer step after which evolution may come; the paper's is 3/4 of training.
        grow: `by_gradient`, `by_gradient_among(n)` for layers too large for it, or `mixed(...)`.
    Example:
        >>> RigL(until=1000).fraction(500)
        0.15

    Source: Evci et al. 2020, "Rigging the lottery" (arXiv:1911.11134).
    """

    start_density: float | None = _fixed(None)
    surplus: Schedule | None = _fixed(None)
    drop: DropRule = _fixed(magnitude)
    scope: Scope = _fixed(per_layer)
    grow: GrowthRule = by_gradient
    longest_interval: ClassVar[int] = 100


@dataclass(frozen=True, repr=False, kw_only=True)
class GMP(Evolution):
    """Gradual magnitude pruning: from `start_density` down to the target along a cubic; nothing grows.

    A layer that does not train is not pruned. Once it trains again it catches up at the next evolution; where that is
    later than `until`, at the next step that the interval names.

    Args:
        interval: in optimizer steps; "auto" is at most 100.
        until: optimizer step at which the target is reached; with `sparsify(..., steps=...)` half of the training.
        begin: optimizer step at which pruning begins.
        start_density: at first; 1 begins dense.
        scope: `per_layer` gives each layer its own target, `across_layers` prunes the weakest of the whole model.
    Example:
        >>> algorithm = GMP(until=300)
        >>> [algorithm.connections(step, start=1000, target=100) for step in (0, 100, 300)]
        [1000, 367, 100]

    Source: Zhu and Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878).
    """

    drop_fraction: float | Schedule | None = _fixed(0.0)
    begin: int = 0
    start_density: float = 1.0
    surplus: Schedule | None = _fixed(None)
    drop: DropRule = _fixed(magnitude)
    scope: Scope = per_layer
    grow: GrowthRule = _fixed(uniformly)
    longest_interval: ClassVar[int] = 100
    share_of_steps: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pruning(self)
        check_steps("begin", self.begin, 0)
        if self.until is not None and self.until <= self.begin:
            raise ValueError(f"until must be after begin, got until={self.until} and begin={self.begin}.")

    @property
    def pruning(self) -> Schedule | None:
        """Step -> share of the connections beyond the target's that are left; None while `until` is not known."""
        return None if self.until is None else cubic(1.0, self.until - self.begin, begin=self.begin)


@dataclass(frozen=True, repr=False, kw_only=True)
class GraNet(Evolution):
    """RigL that begins denser: prunes along a cubic from `start_density` to the target, and evolves all the while.

    The most accurate algorithm of those measured (docs/accuracy.md), at the price of a denser beginning. A layer that
    does not train catches up with pruning as under `GMP`.

    Args:
        interval: in optimizer steps.
        drop_fraction: see `Evolution`.
        until: last optimizer step after which evolution may come; with `sparsify(..., steps=...)` 3/4 of the training.
        prune_until: optimizer step at which the target is reached; None: two thirds of `until`.
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
    start_density: float = 0.5
    surplus: Schedule | None = _fixed(None)
    drop: DropRule = _fixed(magnitude)
    scope: Scope = per_layer
    grow: GrowthRule = by_gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pruning(self)
        if self.prune_until is not None:
            check_steps("prune_until", self.prune_until, 1)
            if self.until is not None and self.prune_until > self.until:
                raise ValueError(
                    f"prune_until must be at most until, got prune_until={self.prune_until} and until={self.until}."
                )

    @property
    def target_step(self) -> int | None:
        """The optimizer step at which the target is reached; None while `until` is not known."""
        if self.prune_until is not None or self.until is None:
            return self.prune_until
        return max(1, self.until * 2 // 3)


@dataclass(frozen=True, repr=False, kw_only=True)
class Static(Evolution):
    """A fixed sparse topology: nothing is ever dropped or grown.

    Example:
        >>> Static().due(step=100)
        False
    """

    interval: Interval = _fixed(None)
    drop_fraction: float | Schedule | None = _fixed(0.0)
    until: int | None = _fixed(None)
    start_density: float | None = _fixed(None)
    surplus: Schedule | None = _fixed(None)
    drop: DropRule = _fixed(magnitude)
    scope: Scope = _fixed(per_sign)
    grow: GrowthRule = _fixed(uniformly)


def check_evolution(evolution: object) -> None:
    """Raise TypeError unless it is an `Evolution`."""
    if isinstance(evolution, Evolution):
        return
    if isinstance(evolution, type) and issubclass(evolution, Evolution):
        got, way_out = f"the class {evolution.__name__}", f" Call it: evolution={evolution.__name__}()."
    else:
        got, way_out = shown(evolution), ""
    if isinstance(evolution, str):
        names = {algorithm.__name__.lower(): algorithm.__name__ for algorithm in (SET, RigL, GMP, GraNet, Static)}
        name = names.get(evolution.lower(), "SET")
        way_out = f" Pass the algorithm itself, not its name: from sparsify import {name}; evolution={name}()."
    raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {got}.{way_out}")


def _check_pruning(algorithm: Evolution) -> None:
    """Raise unless it says where pruning begins, and ends after at least a step."""
    check_density(algorithm.start_density, argument="start_density")
    if algorithm.until is not None:
        check_steps("until", algorithm.until, 1)
