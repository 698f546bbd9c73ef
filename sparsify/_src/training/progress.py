"""Where evolution stands: what a checkpoint must hold beside topologies and buffers."""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.update import Update
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change
from sparsify._src.topology import Shape
from sparsify._src.training import record_state
from sparsify._src.training.explored import Explored, hashes_of
from sparsify._src.training.last_grown import LastGrown
from sparsify._src.training.record import Record
from sparsify._src.training.recording import layer_record, whats_new
from sparsify._src.training.saved import check_count, refused

KEY = 'state_dict["sparsify"]'
"""Where the state is found in an optimizer's state dict; errors name it."""

SEED_BITS = 14_000
"""Longer numbers Python does not print, and so no generator of ours can be seeded by them."""

EVOLVERS = ("schedules", "topology")
"""What the evolver adds to the state."""


@dataclass
class Progress:
    """The state of evolution itself.

    seed: of all its random choices.
    counts: connections of each layer at first and in the end.
    explored: which places of each layer were ever active.
    due: whether evolution comes after the next step.
    step, evolutions: how many there were.
    history: a record of each evolution.
    trained: the layers that have trained since the last one.
    last_grown: the connections that grew in each layer when it last evolved.
    """

    seed: int
    counts: dict[str, tuple[int, int]]
    explored: dict[str, Explored]
    due: bool
    step: int = 0
    evolutions: int = 0
    history: list[Record] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)
    last_grown: dict[str, LastGrown] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last_grown = {name: LastGrown.none() for name in self.counts} | self.last_grown

    def excess(self, algorithm: Evolution, name: str, nnz: int) -> int:
        """How many connections more than its schedule says a layer has; none where nothing is pruned."""
        return 0 if not algorithm.prunes else nnz - algorithm.connections(self.step, *self.counts[name])

    def is_late(self, algorithm: Evolution) -> bool:
        """Whether evolution is over by the schedule: what still comes only prunes."""
        return algorithm.until is not None and self.step > algorithm.until

    def catches_up(self, algorithm: Evolution, counts: Callable[[], Mapping[str, int]]) -> bool:
        """Whether layers that did not train while others were pruned are pruned after the next step, late.

        Args:
            counts: gives the connections of each layer that can train.
        """
        if not algorithm.prunes or not algorithm.is_late(self.step + 1):
            return False
        return sum(self.excess(algorithm, name, nnz) for name, nnz in counts().items()) > 0

    def prepare_record(
        self,
        drop_fraction: float,
        updates: Mapping[str, Update],
        changes: Iterable[Change],
        layers: Mapping[str, SparseMatrix],
        due: bool | None = None,
    ) -> tuple[Record, Change]:
        """Prepare to count one evolution.

        Args:
            updates: of the layers that evolve.
            changes: that carry it out.
            layers: all of them, as they are before.
            due: whether evolution comes after the next step; None: as it is.
        """
        explored, last_grown, seen = dict(self.explored), dict(self.last_grown), whats_new(layers, changes)
        for name, update in updates.items():
            explored[name], hashes = copy.copy(explored[name]), hashes_of(update.grown)
            explored[name].add_hashes(hashes)
            last_grown[name] = LastGrown.of(update.grown, hashes)
        of_layers = {
            name: layer_record(
                layer, updates.get(name), seen.get(name), self.counts[name][1], explored[name], self.last_grown[name]
            )
            for name, layer in layers.items()
        }
        connections = sum(each.connections for each in of_layers.values())
        density = connections / max(1, sum(math.prod(each.shape) for each in layers.values()))
        record = Record(self.step, drop_fraction, density, of_layers)
        after = {"evolutions": self.evolutions + 1, "due": self.due if due is None else due, "trained": set()}
        return record, partial(self._note, record, len(self.history), explored, last_grown, after)

    def _note(
        self,
        record: Record,
        place: int,
        explored: Mapping[str, Explored],
        last_grown: Mapping[str, LastGrown],
        after: Mapping[str, Any],
    ) -> None:
        self.history[place:] = [record]
        self.explored.update(explored)
        self.last_grown.update(last_grown)
        vars(self).update(after)

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers, tuples, dicts and tensors.

        No tensor's length and no key depends on how far evolution has come, so that torch.distributed.checkpoint can
        load in place: the history is a tuple, as the records in a list would each be a key to it.
        """
        return {
            "step": self.step,
            "evolutions": self.evolutions,
            "seed": self.seed,
            "due": bool(self.due),
            "trained": tuple(sorted(self.trained)),
            "counts": {name: (int(first), int(last)) for name, (first, last) in self.counts.items()},
            "explored": {name: explored.state_dict() for name, explored in self.explored.items()},
            "last_grown": {name: grown.state_dict() for name, grown in self.last_grown.items()},
            "history": tuple(map(record_state.plain, self.history)),
        }

    def check_state_dict(self, state: object, shapes: Mapping[str, Shape], beside: Collection[str] = EVOLVERS) -> None:
        """Check everything that `load_state_dict` takes; nothing is changed.

        Args:
            state: what `state_dict()` gave, or anything else.
            shapes: of the sparse layers.
            beside: keys that `state` may have beside ours.
        Raises:
            ValueError: names the first entry that is wrong.
        """
        keys = {field.name for field in fields(self)}
        if not isinstance(state, dict):
            raise refused(KEY, "must be a dict", state)
        if not keys <= set(state) or not set(state) <= keys | set(beside):
            raise refused(KEY, f"must hold {sorted(keys)}", list(state))
        for name in "step", "evolutions":
            check_count(f'{KEY}["{name}"]', state[name], 2**63 - 1)
        if type(state["seed"]) is not int or state["seed"].bit_length() > SEED_BITS:
            raise refused(f'{KEY}["seed"]', f"must be a whole number of at most {SEED_BITS} bits", state["seed"])
        if type(state["due"]) is not bool:
            raise refused(f'{KEY}["due"]', "must be True or False", state["due"])
        places = {name: math.prod(shape) for name, shape in shapes.items()}
        trained = state["trained"]
        if type(trained) is not tuple or not all(type(name) is str and name in places for name in trained):
            raise refused(f'{KEY}["trained"]', f"must be a tuple of sparse layers among {list(places)}", trained)
        for key in "counts", "explored", "last_grown":
            _check_layers(f'{KEY}["{key}"]', state[key], places)
        for name in places:
            _check_first_and_last(f'{KEY}["counts"]["{name}"]', state["counts"][name], places[name])
            self.explored[name].check_state_dict(state["explored"][name], f'{KEY}["explored"]["{name}"]')
            LastGrown.check_state_dict(state["last_grown"][name], f'{KEY}["last_grown"]["{name}"]', places[name])
        record_state.check_history(f'{KEY}["history"]', state["history"], state["evolutions"], state["step"], shapes)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict()` gave; `state` must have passed `check_state_dict`."""
        loaded = Progress(
            seed=state["seed"],
            counts={name: tuple(state["counts"][name]) for name in self.counts},
            explored={name: explored.loaded(state["explored"][name]) for name, explored in self.explored.items()},
            due=state["due"],
            trained=set(state["trained"]),
            step=state["step"],
            evolutions=state["evolutions"],
            history=[*map(record_state.loaded, state["history"])],
            last_grown={name: LastGrown.loaded(state["last_grown"][name]) for name in self.counts},
        )
        vars(self).update(vars(loaded))  # in one go: nothing can come between


def _check_layers(key: str, entries: object, places: Mapping[str, int]) -> None:
    if not isinstance(entries, dict) or set(entries) != set(places):
        got = list(entries) if isinstance(entries, dict) else entries
        raise refused(key, f"must be of the sparse layers {list(places)}", got)


def _check_first_and_last(key: str, counts: object, most: int) -> None:
    rule = f"must be two whole numbers in [0, {most}]"
    if not isinstance(counts, (tuple, list)) or len(counts) != 2:
        raise refused(key, rule, counts)
    if not all(type(count) is int and 0 <= count <= most for count in counts):
        raise refused(key, rule, counts)
    if counts[0] < counts[1]:
        raise refused(key, "must not rise from the first count to the last", counts)
