"""Averages of a layer's values (SWA, EMA, target networks) evolve with it.

An average is elementwise, so it is right as long as both have one topology. If anything but training or loading writes
to a copy of a layer (see `copies`), we treat it as an average: when its original evolves it evolves alike, and keeps
what was averaged of the connections that survive. A copy that nothing has written to stays as it is; if an average is
begun in it later, of other connections than its own, that is refused.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from sparsify._src.kernels.operands import is_direct
from sparsify._src.layers import copies, registry
from sparsify._src.layers.copies import Copy
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.layers.samples import Sample, at, compare, holds_share
from sparsify._src.swap import LOCK, Change, Swap
from sparsify._src.vectors import has_numbers


class Average(Protocol):
    """What evolves with a layer."""

    swap: Swap | None

    @property
    def values(self) -> Tensor:
        """One for each connection of the layer."""

    def prepare_topology(self, flat: Tensor, values: Tensor, grad: Tensor | None) -> Change:
        """Prepare to take over a topology with the values that belong to it."""


class LooseAverage(Average, Protocol):
    """An average that is no layer; see `following`."""

    def is_of(self, name: str, layer: SparseMatrix) -> bool:
        """Whether it is there still. Raise RuntimeError where it does not fit `layer`."""


_loose: WeakKeyDictionary[SparseMatrix, list[LooseAverage]] = WeakKeyDictionary()
"""layer -> averages of it that are no layers."""


def add_loose(layer: SparseMatrix, average: LooseAverage, is_same: Callable[[LooseAverage], bool]) -> None:
    """From now on `average` evolves with `layer`, in the place of what is the same."""
    with LOCK:
        _loose[layer] = [*(one for one in _loose.get(layer, []) if not is_same(one)), average]
        layer.was_copied = True


def see_to_copies(name: str, layer: SparseMatrix) -> None:
    """Check the copies of `layer` that other code has written to since the last step.

    Where a copy that was left behind has the values of `layer` now, an average begins: it takes over the topology too.

    Raises:
        RuntimeError: a copy mixes different connections, or averages indices.
    """
    for copy, known in copies.of(layer):
        if known.left is not None:
            _check_behind(name, layer, copy, known)
        elif not copy.is_checked() and not _same_topology(layer, copy):
            raise RuntimeError(
                f"an average must leave indices as they are, got a copy of layer {name!r} that averages and rounds "
                "them. Average parameters only: use_buffers=False in AveragedModel and Lightning's WeightAveraging."
            )


class Behind:
    """Sees to a copy that was left behind when it computes something without gradients: see `see_to_copies`."""

    def __init__(self, layer: SparseMatrix, known: Copy) -> None:
        self._layer, self._known = ref(layer), known

    def look(self, copy: SparseMatrix) -> None:
        """Before a forward pass."""
        layer, values = self._layer(), copy._parameters.get("values")
        if layer is None or self._known.left is None:
            copy.observer = None
        elif values is not None and is_direct(values, values, None):
            _check_behind(registry.name(layer), layer, copy, self._known)


def _check_behind(name: str, layer: SparseMatrix, copy: SparseMatrix, known: Copy) -> None:
    if known.left is None or not known.left.have_changed():
        return
    if _same_values(layer.values.detach(), copy.values.detach()):
        Swap([copy.prepare_topology(layer.flat(), copy.values.detach().clone(), None), known.begin], [copy]).commit()
    elif any(record.left is None and other in registry.trained() for other, record in copies.originals(copy)):
        copies.forget([copy], [layer])  # it is another's; one that has never stepped has nothing to average
    else:
        _refuse_mixed(name, layer, copy, known)
        known.left.take()


def averages(name: str, layer: SparseMatrix) -> list[Average]:
    """What has to evolve with `layer`, which is about to; nothing is changed.

    Raises:
        RuntimeError: an average is of other connections than its own, or does not fit the layer.
    """
    found: list[Average] = []
    for copy, known in copies.of(layer):
        if not known.is_average(copy):
            continue
        if known.left is None and _same_topology(layer, copy):
            if _is_of(layer, copy, known):
                found.append(copy)
        elif known.asked:
            raise RuntimeError(
                f"average must have the topology of the model that it follows, got another in layer {name!r}. Load the "
                "model's state_dict() into it."
            )
        else:
            _refuse_mixed(name, layer, copy, known)
    return [*found, *(loose for loose in _loose_of(layer) if loose.is_of(name, layer))]


def values_of(name: str, layer: SparseMatrix) -> list[Tensor]:
    """The values of the averages that have the topology of `layer`."""
    layers = [copy.values for copy, known in copies.of(layer) if known.left is None]
    return [*layers, *(loose.values for loose in _loose_of(layer) if loose.is_of(name, layer))]


def prepare_copies(layer: SparseMatrix, averages: Sequence[Average]) -> Change:
    """Prepare to note that `layer` has another topology, and so have `averages`; its other copies are left behind."""
    behind = {copy: copies.take_sample(copy) for copy, _ in copies.of(layer) if copy not in averages}
    return partial(_evolved, layer, averages, behind)


def _evolved(layer: SparseMatrix, averages: Sequence[Average], behind: dict[SparseMatrix, Sample | None]) -> None:
    for copy, known in copies.of(layer):
        if copy in averages:
            known.begin()
            copies.forget([copy], registry.trained() - {layer})
        elif copy in behind:
            known.leave(behind[copy])
            copy.observer = Behind(layer, known)


def _is_of(layer: SparseMatrix, copy: SparseMatrix, known: Copy) -> bool:
    """Whether `copy`, which may be one of several trained layers of the same topology, averages this one."""
    others = [original for original, record in copies.originals(copy) if original is not layer and record.left is None]
    trained = registry.trained() if others else set()
    rivals = [one for one in others if one in trained and _same_topology(one, copy)]
    sample = known.sample
    if not rivals or sample is None or not sample.fits():
        return True
    now, before = sample.now(), sample.numbers
    mine, *theirs = (compare(now, before, at(one.values, sample.positions))[1] for one in (layer, *rivals))
    return all(mine >= other for other in theirs)


def _refuse_mixed(name: str, layer: SparseMatrix, copy: SparseMatrix, known: Copy) -> None:
    """Raise RuntimeError where a copy of another topology holds a share of the values of `layer`."""
    sample = known.sample
    if sample is None or not sample.fits() or len(layer.values) != sample.length or not copy.is_whole():
        return
    now, before, theirs = sample.now(), sample.numbers, at(layer.values, sample.positions).to(sample.vector.device)
    if not _same_topology(layer, copy):  # where both have the same connection nothing is mixed
        there = copy.values.device
        differs = (layer.flat().to(there) != copy.flat())[sample.positions.to(there)]
        now, before, theirs = now[differs], before[differs], theirs[differs]
    if holds_share(now, before, theirs):
        raise RuntimeError(
            f"an average must be of the same connections, got a copy of layer {name!r} that averages weights across an "
            "evolution. Copy the model anew (copy.deepcopy, AveragedModel) when averaging begins."
        )


def _same_values(one: Tensor, other: Tensor) -> bool:
    """But for rounding: some write p + (q - p) / 1 to copy q."""
    if one.shape != other.shape or not has_numbers(other):
        return False
    close = 1e-6 * one.abs().max().item()
    return torch.allclose(one, other.to(one), rtol=0, atol=close)


def _same_topology(one: SparseMatrix, other: SparseMatrix) -> bool:
    return one.is_whole() and other.is_whole() and one.digest == other.digest


def _loose_of(layer: SparseMatrix) -> list[LooseAverage]:
    if not layer.was_copied:
        return []
    with LOCK:
        return list(_loose.get(layer, []))
