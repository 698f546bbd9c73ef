"""Registers all sparse layers that are alive, and which are trained: averages are looked for among them."""

from collections.abc import Mapping
from typing import Protocol
from weakref import WeakSet

from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import LOCK


class Trainer(Protocol):
    """Stands for an optimizer that can evolve these layers, and lives as long as it does.

    has_stepped: whether that has made a step; it need not ever, as that of a target network or of a copied pair.
    """

    has_stepped: bool

    @property
    def layers(self) -> Mapping[str, SparseMatrix]:
        """By name."""


_layers: WeakSet[SparseMatrix] = WeakSet()
_trainers: WeakSet[Trainer] = WeakSet()


def made(layer: SparseMatrix) -> None:
    """`layer` is new: by its constructor, copied or unpickled."""
    with LOCK:
        _layers.add(layer)


def trains(trainer: Trainer) -> None:
    """An optimizer is there for the layers of `trainer`."""
    with LOCK:
        _trainers.add(trainer)


def layers() -> list[SparseMatrix]:
    """All that are alive."""
    with LOCK:
        return list(_layers)


def held() -> set[SparseMatrix]:
    """Those that an optimizer may evolve one day."""
    with LOCK:
        return {layer for trainer in _trainers for layer in trainer.layers.values()}


def trained() -> set[SparseMatrix]:
    """Those that an optimizer trains and evolves."""
    with LOCK:
        return {layer for trainer in _trainers if trainer.has_stepped for layer in trainer.layers.values()}


def name(layer: SparseMatrix) -> str:
    """The name that its optimizer has for a layer; "" where there is none."""
    with LOCK:
        return next((name for trainer in _trainers for name, one in trainer.layers.items() if one is layer), "")
