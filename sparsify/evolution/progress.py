"""Where evolution stands: what a checkpoint must hold beside topologies and buffers."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.evolve import Update
from sparsify.swap import Change
from sparsify.telemetry import Explored


class Record(NamedTuple):
    """What one evolution did: after which optimizer step, and connections dropped and grown in each layer."""

    step: int
    drop_fraction: float
    dropped: dict[str, int]
    grown: dict[str, int]


@dataclass
class Progress:
    """The state of evolution itself.

    seed: of all its random choices.
    counts: connections of each layer at first and in the end.
    explored: which places of each layer were ever active.
    due: whether evolution comes after the next step.
    step, evolutions: how many there were.
    history: a record of each evolution.
    """

    seed: int
    counts: dict[str, tuple[int, int]]
    explored: dict[str, Explored]
    due: bool
    step: int = 0
    evolutions: int = 0
    history: list[Record] = field(default_factory=list)

    def surplus(self, algorithm: Evolution, name: str, nnz: int) -> int:
        """How many connections more than its schedule says a layer has; none where nothing is pruned."""
        return 0 if algorithm.surplus is None else nnz - algorithm.connections(self.step, *self.counts[name])

    def noting(
        self, drop_fraction: float, updates: Mapping[str, Update], due: bool | None = None
    ) -> tuple[Record, Change]:
        """Prepare to count one evolution.

        Args:
            due: whether evolution comes after the next step; None: as it is.
        """
        explored = {}
        for name, update in updates.items():
            explored[name] = copy.copy(self.explored[name])
            explored[name].add(update.grown)
        grown = {name: len(update.grown) for name, update in updates.items()}
        dropped = {name: update.old_nnz - len(update.flat) + grown[name] for name, update in updates.items()}
        record = Record(self.step, drop_fraction, dropped, grown)
        after = {"evolutions": self.evolutions + 1, "due": self.due if due is None else due}
        return record, partial(self._note, record, len(self.history), explored, after)

    def _note(self, record: Record, place: int, explored: Mapping[str, Explored], after: Mapping[str, Any]) -> None:
        self.history[place:] = [record]
        self.explored.update(explored)
        vars(self).update(after)

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers, lists, dicts and tensors."""
        return {
            "step": self.step,
            "evolutions": self.evolutions,
            "seed": self.seed,
            "due": self.due,
            "counts": dict(self.counts),
            "explored": {name: explored.sketch for name, explored in self.explored.items()},
            "history": [record._asdict() for record in self.history],
        }

    def check_state_dict(self, state: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
        """Raise ValueError unless `load_state_dict` can load `state`."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict()` gave."""
        history = [Record(**record) for record in state["history"]]
        self.step, self.evolutions, self.seed, self.due = (state[k] for k in ("step", "evolutions", "seed", "due"))
        self.counts = {name: (first, last) for name, (first, last) in state["counts"].items()}
        for name, sketch in state["explored"].items():
            self.explored[name].sketch = sketch.cpu()
        self.history = history
