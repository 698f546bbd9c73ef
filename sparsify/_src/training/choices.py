"""`Choices`: what the user has chosen of how topologies evolve, checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsify._src.checks import shown
from sparsify._src.evolution.algorithms import check_evolution
from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.grown_values import GrownValues, Named, grown_values_of
from sparsify._src.training.optimizer_state import GrownState, check_grown_state
from sparsify._src.training.record import Record

OnEvolve = Callable[[Record], object]
"""Is called with the record of each evolution, when that is over."""


@dataclass(frozen=True)
class Choices:
    """How the layers of an optimizer evolve.

    evolution: the algorithm.
    grown_values: what new connections start from.
    grown_state: what they find in optimizer buffers.
    on_evolve: what is called after each evolution. It stays behind where the optimizer is pickled.
    seed: of all that is random; None for the default.
    steps: how many optimizer steps the training has, from which follows what the algorithm leaves open.
    """

    evolution: Evolution
    grown_values: GrownValues | Named = "zero"
    grown_state: GrownState = "zero"
    on_evolve: OnEvolve | None = None
    seed: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_evolution(self.evolution)
        if self.steps is not None:
            object.__setattr__(self, "evolution", self.evolution.for_steps(self.steps))
        self.evolution.check_complete()
        grown_values_of(self.grown_values)
        check_grown_state(self.grown_state)
        if self.on_evolve is not None and not callable(self.on_evolve):
            raise TypeError(f"on_evolve must be a function of a Record, got {shown(self.on_evolve)}. Pass it itself.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise TypeError(f"seed must be an int or None, got {self.seed!r}.")

    def tell(self, record: Record) -> None:
        """Call `on_evolve` with the record of an evolution that is over."""
        if self.on_evolve is not None:
            self.on_evolve(record)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "on_evolve": None}
