"""Which sparse layers there are, and which of them are trained: among them averages and copies are looked for."""

from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from sparsify.swap import LOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sparsify.matrix import SparseMatrix


class Trainer(Protocol):
    """Belongs to an optimizer that evolves these layers, and lives as long as it."""

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
    """From now on an optimizer evolves the layers of `trainer`."""
    with LOCK:
        _trainers.add(trainer)


def layers() -> "list[SparseMatrix]":
    """All that are alive."""
    with LOCK:
        return list(_layers)


def trained() -> "set[SparseMatrix]":
    """Those that an optimizer evolves."""
    with LOCK:
        return {layer for trainer in list(_trainers) for layer in trainer.layers.values()}
