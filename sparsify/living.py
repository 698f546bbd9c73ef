"""Which sparse layers there are, and which of them are trained: among them averages and copies are looked for."""

from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from sparsify.swap import LOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sparsify.matrix import SparseMatrix


class Trainer(Protocol):
    """Belongs to an optimizer that evolves these layers, and lives as long as it.

    is_copy: whether it was copied or unpickled with its optimizer, which has not made a step since.
    """

    is_copy: bool

    @property
    def layers(self) -> "Mapping[str, SparseMatrix]":
        """By name."""


_layers: "WeakSet[SparseMatrix]" = WeakSet()
_trainers: "WeakSet[Trainer]" = WeakSet()


def made(layer: "SparseMatrix") -> None:
    """`layer` is new: by its constructor, copied or unpickled."""
    with LOCK:
        _layers.add(layer)


def trains(trainer: Trainer) -> None:
    """An optimizer evolves the layers of `trainer`."""
    with LOCK:
        _trainers.add(trainer)


def layers() -> "list[SparseMatrix]":
    """All that are alive."""
    with LOCK:
        return list(_layers)


def trained(with_copies: bool = False) -> "set[SparseMatrix]":
    """Those that an optimizer evolves; also those that a copy of an optimizer may evolve one day."""
    with LOCK:
        trainers = [trainer for trainer in _trainers if with_copies or not trainer.is_copy]
        return {layer for trainer in trainers for layer in trainer.layers.values()}
