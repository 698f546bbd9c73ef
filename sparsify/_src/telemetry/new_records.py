"""Which records a trainer's loggers have not seen yet."""

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sparsify._src.training import holders
from sparsify._src.training.evolver import Evolver
from sparsify._src.training.optimizer import SparseOptimizer
from sparsify._src.training.record import Record


class NewRecords:
    """The records of optimizers that come after those which were there before.

    What a checkpoint brings was there before; where `sparsify` is called again, its history begins anew.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Evolver, int] = WeakKeyDictionary()
        self._given: list[Any] = []
        self._sparse: list[SparseOptimizer] = []

    def skip(self, optimizers: Sequence[Any]) -> None:
        """All that is in their histories now has been seen."""
        for _ in self.take(optimizers):
            pass

    def take(self, optimizers: Sequence[Any]) -> Iterator[tuple[str, Record]]:
        """Each record that is new, and what the names of its scalars begin with: where several optimizers have records,
        another for each.

        Args:
            optimizers: of a trainer; or what it has wrapped them in.
        """
        sparse = self._found(optimizers)
        for number, each in enumerate(sparse):
            evolver, history = each._self_evolver, each.history
            begin, self._seen[evolver] = self._seen.get(evolver, 0), len(history)
            for record in history[begin:]:
                yield "sparsify" if len(sparse) == 1 else f"sparsify-{number}", record

    def _found(self, optimizers: Sequence[Any]) -> list[SparseOptimizer]:
        """The sparse optimizers that these are or hold; looked for where they are others than before."""
        if [*map(id, optimizers)] != [*map(id, self._given)]:
            self._given = [*optimizers]
            self._sparse = [each for each in holders.optimizers(*optimizers) if isinstance(each, SparseOptimizer)]
        return self._sparse

    def __reduce__(self) -> tuple[type["NewRecords"], tuple[()]]:
        return NewRecords, ()
