"""Where evolution stands: what a checkpoint must hold beside topologies and buffers."""

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, NamedTuple

from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.update import Update
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change
from sparsify._src.topology import Shape
from sparsify._src.training.explored import Explored, refused

KEY = 'state_dict["sparsify"]'
"""Where the state is found in an optimizer's state dict; errors name it."""

SEED_BITS = 14_000
"""Longer numbers Python does not print, and so no generator of ours can be seeded by them."""

EVOLVERS = ("schedules", "topology")
"""What the evolver adds to the state."""


class Record(NamedTuple):
    """What one evolution did.

    step: after which optimizer step it came.
    drop_fraction: share of the connections that made room for new ones.
    dropped, grown: connections, by layer; of the layers that evolved.
    connections: of every sparse layer, afterwards.
    density: of all sparse layers together, afterwards.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5, on_evolve=print)
        >>> record = sgd.evolve()  # doctest: +ELLIPSIS
        Record(step=0, drop_fraction=0.3, dropped={'0': ..., '2': ...}, grown={...}, connections={...}, density=0.5)
    """

    step: int
    drop_fraction: float
    dropped: dict[str, int]
    grown: dict[str, int]
    connections: dict[str, int]
    density: float


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
    """

    seed: int
    counts: dict[str, tuple[int, int]]
    explored: dict[str, Explored]
    due: bool
    step: int = 0
    evolutions: int = 0
    history: list[Record] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)

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
        layers: Mapping[str, SparseMatrix],
        due: bool | None = None,
    ) -> tuple[Record, Change]:
        """Prepare to count one evolution.

        Args:
            updates: of the layers that evolve.
            layers: all of them, as they are before.
            due: whether evolution comes after the next step; None: as it is.
        """
        explored = {}
        for name, update in updates.items():
            explored[name] = copy.copy(self.explored[name])
            explored[name].add(update.grown)
        grown = {name: len(update.grown) for name, update in updates.items()}
        dropped = {name: update.old_nnz - len(update.flat) + grown[name] for name, update in updates.items()}
        after_all = {name: len(updates[name].flat) if name in updates else each.nnz for name, each in layers.items()}
        density = sum(after_all.values()) / max(1, sum(math.prod(each.shape) for each in layers.values()))
        record = Record(self.step, drop_fraction, dropped, grown, after_all, density)
        after = {"evolutions": self.evolutions + 1, "due": self.due if due is None else due, "trained": set()}
        return record, partial(self._note, record, len(self.history), explored, after)

    def _note(self, record: Record, place: int, explored: Mapping[str, Explored], after: Mapping[str, Any]) -> None:
        self.history[place:] = [record]
        self.explored.update(explored)
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
            "history": tuple(record._asdict() for record in self.history),
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
            _check_count(f'{KEY}["{name}"]', state[name], 2**63 - 1)
        if type(state["seed"]) is not int or state["seed"].bit_length() > SEED_BITS:
            raise refused(f'{KEY}["seed"]', f"must be a whole number of at most {SEED_BITS} bits", state["seed"])
        if type(state["due"]) is not bool:
            raise refused(f'{KEY}["due"]', "must be True or False", state["due"])
        places = {name: shape[0] * shape[1] for name, shape in shapes.items()}
        trained = state["trained"]
        if type(trained) is not tuple or not all(type(name) is str and name in places for name in trained):
            raise refused(f'{KEY}["trained"]', f"must be a tuple of sparse layers among {list(places)}", trained)
        _check_layers(f'{KEY}["counts"]', state["counts"], places)
        _check_layers(f'{KEY}["explored"]', state["explored"], places)
        for name in places:
            _check_first_and_last(f'{KEY}["counts"]["{name}"]', state["counts"][name], places[name])
            self.explored[name].check_state_dict(state["explored"][name], f'{KEY}["explored"]["{name}"]')
        _check_history(f'{KEY}["history"]', state["history"], state, places)

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
            history=[
                Record(**{**record, **{key: dict(record[key]) for key in ("dropped", "grown", "connections")}})
                for record in state["history"]
            ],
        )
        vars(self).update(vars(loaded))  # in one go: nothing can come between


def _check_count(key: str, count: object, most: int) -> None:
    if type(count) is not int or not 0 <= count <= most:
        raise refused(key, f"must be a whole number in [0, {most}]", count)


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


def _check_history(key: str, history: object, state: Mapping[str, Any], places: Mapping[str, int]) -> None:
    if not isinstance(history, (tuple, list)):
        raise refused(key, "must be a tuple or a list", history)
    if len(history) != state["evolutions"]:
        raise refused(key, f'must have {state["evolutions"]} records ("evolutions")', len(history))
    before = 0
    for number, record in enumerate(history):
        _check_record(f"{key}[{number}]", record, before, state["step"], places)
        before = record["step"]


def _check_record(key: str, record: object, before: int, now: int, places: Mapping[str, int]) -> None:
    if not isinstance(record, dict) or set(record) != set(Record._fields):
        got = list(record) if isinstance(record, dict) else record
        raise refused(key, f"must be a dict of {list(Record._fields)}", got)
    step, fraction = record["step"], record["drop_fraction"]
    if type(step) is not int or not before <= step <= now:
        rule = f"must be a whole number in [{before}, {now}], never less than the one before"
        raise refused(f'{key}["step"]', rule, step)
    if type(fraction) not in (int, float) or not 0 <= fraction <= 1:
        raise refused(f'{key}["drop_fraction"]', "must be a number in [0, 1]", fraction)
    density = record["density"]
    if type(density) is not float or not 0 <= density <= 1:
        raise refused(f'{key}["density"]', "must be a number in [0, 1]", density)
    for name in "dropped", "grown", "connections":
        entries = record[name]
        if not isinstance(entries, dict) or not set(entries) <= set(places):
            got = list(entries) if isinstance(entries, dict) else entries
            raise refused(f'{key}["{name}"]', f"must be of sparse layers among {list(places)}", got)
        for layer, count in entries.items():
            _check_count(f'{key}["{name}"]["{layer}"]', count, places[layer])
    if set(record["dropped"]) != set(record["grown"]):
        raise refused(f'{key}["grown"]', f"must be of the layers {list(record['dropped'])}", list(record["grown"]))
