"""Which layers are copies of others: deep copies, and those that have loaded the weight of a layer that is trained.

A copy that nothing has written to is a snapshot; one that anything but training or loading has written to is an
average, and evolves with its original (see `averaging`). One that is trained for itself is no copy any more.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from sparsify._src.layers import counting, registry
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.layers.samples import Sample, Samples
from sparsify._src.swap import LOCK
from sparsify._src.torch_private import version
from sparsify._src.vectors import fingerprint, has_numbers


class State(NamedTuple):
    """What shows whether values were written to, be it with equal numbers or past PyTorch's version counters."""

    version: int
    address: int
    fingerprint: str

    @classmethod
    def of(cls, layer: SparseMatrix) -> "State":
        """That of its values now."""
        values = layer.values
        address = values.data_ptr() if isinstance(values, nn.Parameter) and has_numbers(values) else 0
        return cls(version(values), address, fingerprint(values))


@dataclass
class Copy:
    """What is known of a copy of one layer.

    state: of its values when they were copied or loaded, while it is a snapshot; None for an average.
    sample: some of its values as they were then, or when the original last evolved without it.
    left: compares the sample, where the original has evolved without it.
    asked: whether the user has said that it is an average.
    gradients: how many had come to it.
    """

    state: State | None
    sample: Sample | None
    left: Samples | None = None
    asked: bool = False
    gradients: int = 0

    def is_average(self, copy: SparseMatrix) -> bool:
        """Whether something has written to it."""
        return self.asked or self.state is None or self.state != State.of(copy)

    def begin(self) -> None:
        """It is an average from now on, and has the topology of the original."""
        self.state = self.sample = self.left = None

    def leave(self, sample: Sample | None) -> None:
        """The original evolves without it."""
        self.sample, self.left = sample, Samples([] if sample is None else [sample])


_copies: WeakKeyDictionary[SparseMatrix, WeakSet[SparseMatrix]] = WeakKeyDictionary()
"""original -> what is, or was, a copy of it."""

_records: WeakKeyDictionary[SparseMatrix, WeakKeyDictionary[SparseMatrix, Copy]] = WeakKeyDictionary()
"""copy -> original -> what is known."""


def copied(original: SparseMatrix, copy: SparseMatrix) -> None:
    """`copy` is a deep copy of `original`, and so of what that follows itself."""
    with LOCK:
        followed = [each for each, known in originals(original) if known.left is None]
        _snapshot(copy, [original, *followed])


def loaded(layer: SparseMatrix) -> None:
    """The values of `layer` come from a checkpoint: if it is a copy, it is a snapshot now.

    It is one of each layer that an optimizer is there for and that has the very same weight, unless it is trained
    itself; and if there is an optimizer for it, others are copies of it.
    """
    with LOCK:
        held = registry.held()
        if layer in held:
            for other in registry.layers():
                if other not in held and _is_equal(layer, other):
                    _snapshot_too(other, layer)
        if layer in registry.trained():
            return
        known = originals(layer)
        asked = any(record.asked for _, record in known)
        equal = [] if asked else [original for original in held if _is_equal(original, layer)]
        of_these = equal or [original for original, _ in known]
        _snapshot(layer, of_these, asked)


def follows(copy: SparseMatrix, layer: SparseMatrix) -> None:
    """From now on `copy` evolves with `layer`, because the user says so, and with no other."""
    with LOCK:
        _snapshot(copy, [layer], asked=True)


def forget(layers: Iterable[SparseMatrix], of_these: Iterable[SparseMatrix] | None = None) -> None:
    """They are copies of no other, or only not `of_these`."""
    with LOCK:
        for layer in layers:
            if of_these is None:
                _records.pop(layer, None)
            elif layer in _records:
                for original in of_these:
                    _records[layer].pop(original, None)


def of(layer: SparseMatrix) -> list[tuple[SparseMatrix, Copy]]:
    """The copies of `layer`."""
    if not layer.was_copied:
        return []
    with LOCK:
        copies = list(_copies.get(layer, ()))
        return [(copy, known[layer]) for copy in copies if layer in (known := _known(copy))]


def originals(copy: SparseMatrix) -> list[tuple[SparseMatrix, Copy]]:
    """What `copy` is a copy of."""
    with LOCK:
        return list(_known(copy).items())


def take_sample(layer: SparseMatrix) -> Sample | None:
    """Of its values, where they are numbers in memory."""
    values = layer.values
    return Sample.evenly(values) if isinstance(values, nn.Parameter) and has_numbers(values) else None


@contextmanager
def converted(layer: SparseMatrix) -> Iterator[None]:
    """Within this block `layer` changes its dtype or device: if it is a snapshot, it stays one."""
    known = [record for _, record in originals(layer)]
    snapshots = [one for one in known if one.state is not None and one.state == State.of(layer)]
    yield
    for one in snapshots:
        one.state = State.of(layer)
    for one in known:
        one.sample = take_sample(layer)
        if one.left is not None:
            one.leave(one.sample)


def _snapshot(copy: SparseMatrix, of_these: Iterable[SparseMatrix], asked: bool = False) -> None:
    """Be a snapshot of these, and of no other; at once, because an interruption may leave it undone."""
    records: WeakKeyDictionary[SparseMatrix, Copy] = WeakKeyDictionary()
    for original in of_these:
        original.was_copied = True
        _copies.setdefault(original, WeakSet()).add(copy)
        records[original] = Copy(State.of(copy), take_sample(copy), asked=asked, gradients=copy.gradients)
    if records:
        counting.count_gradients(copy)
        _records[copy] = records


def _snapshot_too(copy: SparseMatrix, layer: SparseMatrix) -> None:
    """Be a snapshot of `layer` beside those that it is one of already, unless the user has said what it follows."""
    known = _known(copy)
    if layer not in known and not any(record.asked for record in known.values()):
        _snapshot(copy, [*(one for one, record in known.items() if record.left is None), layer])


def _known(copy: SparseMatrix) -> Mapping[SparseMatrix, Copy]:
    """What `copy` is a copy of. One that gradients have come to is trained for itself, unless the user has said that it
    is an average."""
    records: Mapping[SparseMatrix, Copy] = _records.get(copy, {})
    every = list(records.values())
    if any(known.gradients != copy.gradients for known in every) and not any(known.asked for known in every):
        forget([copy])
        return {}
    return records


def _is_equal(one: SparseMatrix, other: SparseMatrix) -> bool:
    """Whether two layers have one topology, and the same values there."""
    if one is other or one.shape != other.shape or not (one.was_checked and other.was_checked):
        return False
    mine, theirs = one.values.detach(), other.values.detach()
    if one.last_digest != other.last_digest or not (has_numbers(mine) and has_numbers(theirs)):
        return False
    return mine.shape == theirs.shape and torch.equal(mine.to(theirs), theirs)
