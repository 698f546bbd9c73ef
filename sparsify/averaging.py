"""Copies of a layer whose values are averaged (SWA, EMA, mean teachers): they evolve with it.

An average is elementwise, so it is right as long as both layers have one topology. A deep copy that something else than
training or loading has written to is taken for an average: when its original evolves it evolves alike, and keeps what
was averaged of the connections that survive. A copy that nothing has written to is a snapshot and stays as it is; if an
average is begun in it later, of other connections than its own, that is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from sparsify.swap import LOCK
from sparsify.topology import fingerprint

if TYPE_CHECKING:
    from sparsify.matrix import SparseMatrix


@dataclass
class _Copy:
    """What is known of a copy.

    fingerprint: of its values when they were copied or loaded, while it is a snapshot; None for an average.
    left_at: the version of its values when its original evolved without it.
    """

    fingerprint: str | None
    left_at: int | None = None


_copies: "WeakKeyDictionary[SparseMatrix, WeakKeyDictionary[SparseMatrix, _Copy]]" = WeakKeyDictionary()
"""original -> its copies that are alive and not trained themselves."""


def copied(original: "SparseMatrix", copy: "SparseMatrix") -> None:
    """`copy` is a deep copy of `original`."""
    with LOCK:
        original.was_copied = True
        _copies.setdefault(original, WeakKeyDictionary())[copy] = _Copy(fingerprint(copy.values))
    if copy.values.requires_grad:
        copy.values.register_post_accumulate_grad_hook(partial(_trained, ref(copy)))  # type: ignore[no-untyped-call]


def loaded(layer: "SparseMatrix") -> None:
    """The values of `layer` come from a checkpoint: if it is a copy, it is a snapshot now."""
    with LOCK:
        for copies in _copies.values():
            if layer in copies:
                copies[layer] = _Copy(fingerprint(layer.values))


@contextmanager
def converted(layer: "SparseMatrix") -> Iterator[None]:
    """Within this block `layer` changes its dtype or device: if it is a snapshot, it stays one."""
    with LOCK:
        known = [copies[layer] for copies in _copies.values() if layer in copies]
    snapshots = [one for one in known if one.fingerprint == fingerprint(layer.values)]
    yield
    for one in snapshots:
        one.fingerprint = fingerprint(layer.values)
        one.left_at = None if one.left_at is None else layer.values._version


def check(name: str, layer: "SparseMatrix") -> None:
    """See to the copies of `layer` that something else has written to since the last step.

    Where a copy that was left behind has the values of `layer` now, an average begins: it takes over the topology too.

    Raises:
        RuntimeError: a copy mixes different connections, or averages indices.
    """
    for copy, known in _copies_of(layer):
        if known.left_at is None:
            if not copy.is_checked() and not _same_topology(layer, copy):
                raise RuntimeError(
                    f"an average must leave indices as they are, got a copy of layer {name!r} that averages and rounds "
                    "them. Average parameters only: use_buffers=False in AveragedModel and Lightning's WeightAveraging."
                )
        elif copy.values._version != known.left_at:
            if not _same_values(layer.values, copy.values):
                raise _mixed(name)
            copy.rewire(layer.flat(), copy.values.detach().clone(), None)
            known.fingerprint = known.left_at = None


def averages(name: str, layer: "SparseMatrix") -> list["SparseMatrix"]:
    """The copies that have to evolve with `layer`, which is about to; nothing is changed.

    Raises:
        RuntimeError: a copy holds averages of other connections than its own.
    """
    written = {copy: known for copy, known in _copies_of(layer) if known.fingerprint != fingerprint(copy.values)}
    if any(known.left_at is not None or not _same_topology(layer, copy) for copy, known in written.items()):
        raise _mixed(name)
    return list(written)


def evolved(layer: "SparseMatrix", averages: Sequence["SparseMatrix"]) -> None:
    """`layer` has another topology now, and so have `averages`; its other copies are left behind."""
    for copy, known in _copies_of(layer):
        if copy in averages:
            known.fingerprint = None
        else:
            known.left_at = copy.values._version


def _trained(copy: "ReferenceType[SparseMatrix]", _: Tensor) -> None:
    """A gradient has come to a copy: it is trained for itself, and follows no other."""
    layer = copy()
    if layer is not None:
        with LOCK:
            for copies in _copies.values():
                copies.pop(layer, None)


def _same_values(one: Tensor, other: Tensor) -> bool:
    """But for rounding: some write p + (q - p) / 1 to copy q."""
    close = 1e-6 * one.abs().max().item()
    return one.shape == other.shape and torch.allclose(one, other.to(one), rtol=0, atol=close)


def _same_topology(one: "SparseMatrix", other: "SparseMatrix") -> bool:
    try:
        return one.digest == other.digest
    except ValueError:  # one of them has none
        return False


def _copies_of(layer: "SparseMatrix") -> list[tuple["SparseMatrix", _Copy]]:
    if not layer.was_copied:
        return []
    with LOCK:
        return list(_copies.get(layer, {}).items())


def _mixed(name: str) -> RuntimeError:
    return RuntimeError(
        f"an average must be of the same connections, got a copy of layer {name!r} that averages weights across an "
        "evolution. Copy the model anew (copy.deepcopy, AveragedModel) when averaging begins."
    )
