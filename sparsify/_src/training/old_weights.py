"""Dense modules and weights that sparse layers have replaced: using them raises, holding them warns.

A list of layers that the model keeps beside its modules, a list of parameters made too early, a model that `sparsify()`
returned and nobody took: all of them refer to what is no part of the model any more, and trains no more.
"""

import gc
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, NoReturn
from weakref import ReferenceType, WeakSet, ref

import torch
from torch import nn

from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.warning import warn

OldWeights = list[tuple[str, "ReferenceType[nn.Parameter]"]]
"""Layer name, and the dense weight that was there."""


class Replaced:
    """Mixed into the class of a dense module that was replaced: it raises wherever the module is used."""

    _layer: str
    _gone: frozenset[str]

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: this module was replaced by a sparse one."""
        raise RuntimeError(self._says())

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_gone", ()):
            raise RuntimeError(self._says())
        return super().__getattr__(name)  # type: ignore[misc]  # nn.Module has it

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _again, (type(self).__mro__[2], self.__dict__)

    def _says(self) -> str:
        kind = type(self).__mro__[2].__name__
        if not self._layer:
            return (
                f"model must be the one that sparsify() returned, got the {kind} that it was given: a sparse layer has "
                "taken its place. Write model, optimizer = sparsify(model, optimizer, ...)."
            )
        return (
            f"layer {self._layer!r} must be used where it is in the model now, got the {kind} that was there before "
            "sparsify(). Something refers to it beside the module tree (a list, a dict, another model): take it anew "
            f"with model.get_submodule({self._layer!r}), or keep layers in an nn.ModuleList."
        )


def retire(names: Mapping[nn.Module, str], weights: Iterable[nn.Parameter]) -> OldWeights:
    """Take their weights from replaced modules, give the memory back, and have them raise from now on.

    Args:
        names: replaced module -> its name in the model.
        weights: that have been replaced.
    """
    gone = {id(weight): weight for weight in weights}
    old: OldWeights = []
    for owner, prefix in names.items():
        for part in owner.modules():
            lost = [name for name, p in part._parameters.items() if id(p) in gone]
            if not lost and part is not owner:
                continue
            old += [(prefix, ref(gone[id(part._parameters.pop(name))])) for name in lost]
            vars(part).update(_layer=prefix, _gone=frozenset(lost))
            part.__class__ = _replaced(type(part))
    for weight in gone.values():
        weight.grad = None
        if not weight.is_meta:
            weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return old


def warn_of_old_weights(old: OldWeights) -> None:
    """Warn where something still holds dense weights that have been replaced, by layer name."""
    if not any(reference() is not None for _, reference in old):
        return
    gc.collect()
    held = [name for name, reference in old if _is_held(reference, sys._getframe(1))]
    if held:
        warn(
            f"Something still holds the dense weights of {', '.join(map(repr, held))} that sparsify() has replaced: a "
            "list of parameters, another optimizer. They are empty and train no more, so clipping, penalties or "
            "averages of them do nothing. Make such lists after sparsify(): list(model.parameters())."
        )


class _Watch:
    """Remarks on layers that no wrapped optimizer trains: when they are trained first, old weights are looked for.

    Args:
        old: the dense weights that they have replaced.
        layers: which tell it.
    """

    unfinished = None

    def __init__(self, old: OldWeights, layers: Iterable[SparseMatrix]) -> None:
        self.old, self.layers = old, WeakSet(layers)

    def trained(self) -> None:
        """A layer is used in training."""
        for layer in self.layers:
            if layer.remarks is self:
                layer.remarks = None
        old, self.old = self.old, []
        warn_of_old_weights(old)

    def evaluated(self) -> None:
        """A layer is used without training, of which there is nothing to say."""

    def saved(self, how: str = "saved") -> None:
        """A layer is saved, of which there is nothing to say."""


def watch_old_weights(old: OldWeights, layers: Iterable[SparseMatrix]) -> None:
    """Warn of old weights that something still holds, as an optimizer that was made before, when training begins."""
    layers = list(layers)
    watch = _Watch(old, layers)
    for layer in layers:
        layer.remarks = watch


def _is_held(reference: "ReferenceType[nn.Parameter]", frame: FrameType | None) -> bool:
    """Whether Python code, in `frame` or around it, can still reach a weight; a graph that holds it does no harm."""
    weight = reference()
    if weight is None:
        return False
    if any(not isinstance(holder, FrameType) for holder in gc.get_referrers(weight)):
        return True
    number = id(weight)  # not the weight itself in what follows, which would hold it too
    while frame is not None:
        if any(id(value) == number for value in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False


def _replaced(kind: type) -> type:
    return kind if issubclass(kind, Replaced) else type(f"Replaced{kind.__name__}", (Replaced, kind), {})


def _again(kind: type, state: dict[str, Any]) -> object:
    module: object = object.__new__(_replaced(kind))
    module.__dict__.update(state)
    return module
