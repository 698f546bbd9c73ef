"""Replaces parameters in an optimizer, wherever it holds them or keeps state for them."""

import copy
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from sparsify._src.torch_private import LBFGS_SIZE
from sparsify._src.training import holders
from sparsify._src.training.holders import Layout
from sparsify._src.training.optimizer_state import WEIGHTS


class Piece(NamedTuple):
    """A new parameter that replaces an old one, or part of it.

    parameter: the new one.
    old_name, name: of the old and of the new one, as seen from the module that is replaced.
    take: gives its part of a tensor that has the old one's shape.
    scale: of the new one's values, by that of the old one's; copies and averages of weights are scaled alike.
    """

    parameter: nn.Parameter
    old_name: str
    name: str
    take: Callable[[Tensor], Tensor]
    scale: float = 1.0

    def of(self, state: Any, old: Tensor, key: str = "") -> Any:
        """Its part of what is kept for the old parameter, in nested containers too."""
        if isinstance(state, Tensor) and state.shape == old.shape:
            is_weight = self.scale != 1 and (key in WEIGHTS or torch.equal(state, old))
            return self.take(state) * self.scale if is_weight else self.take(state)
        if isinstance(state, dict):
            new = copy.copy(state)
            new.update({name: self.of(x, old, name if isinstance(name, str) else key) for name, x in state.items()})
            return new
        if isinstance(state, deque):
            return deque((self.of(x, old, key) for x in state), state.maxlen)
        if type(state) in (list, tuple):
            return type(state)(self.of(x, old, key) for x in state)
        return copy.deepcopy(state)


Pieces = Mapping[nn.Parameter, Sequence[Piece]]
"""Old parameter -> what replaces it."""


def replace_parameters(
    optimizer: Any, pieces: Pieces, allocated: Mapping[nn.Parameter, nn.Parameter], undo: ExitStack
) -> None:
    """Put the new parameters where the old ones are, in param groups and everywhere else, and carry the state over.

    Args:
        optimizer: changed in place, with all optimizers that it holds.
        pieces: old parameter -> what replaces it.
        allocated: parameters on the meta device -> what they have become.
        undo: learns how to take it back.
    Raises:
        ValueError: the optimizer has state for a parameter on the meta device.
        TypeError: it holds an old parameter where one that is split in several has no place.
    """
    inside = holders.optimizers(optimizer)
    for each in inside:
        if isinstance(each, LBFGS):  # one history for all parameters, in their old sizes
            undo.callback(each.state.update, dict(each.state))
            each.state.clear()
            _set(vars(each), LBFGS_SIZE, None, undo)
    whole = {old: [Piece(new, "", "", _all)] for old, new in allocated.items() if old not in pieces}
    layouts = [[list(group) for group in layout] for layout in holders.layouts(*inside)]
    held = {id(p) for layout in layouts for group in layout for p in group}
    new = {
        id(old): [piece._replace(parameter=allocated.get(piece.parameter, piece.parameter)) for piece in parts]
        for old, parts in {**pieces, **whole}.items()
        if id(old) in held
    }
    old = {id(p): p for p in (*pieces, *whole)}
    _Transfer(new, old, undo).renew(optimizer, layouts)


class _Transfer:
    """Walks once through an optimizer and puts the new parameters in."""

    def __init__(self, new: Mapping[int, Sequence[Piece]], old: Mapping[int, nn.Parameter], undo: ExitStack) -> None:
        self._new, self._old, self._undo = new, old, undo
        self._seen: dict[int, Any] = {}

    def renew(self, value: Any, layouts: Sequence[Layout], depth: int = 0) -> Any:
        """Return `value` with the new parameters in it, changed in place where that is possible."""
        if id(value) in self._new:
            parts = self._new[id(value)]
            if len(parts) > 1:
                raise TypeError(
                    f"optimizer must hold a weight that is split into {len(parts)} in a list, got it by itself. Leave "
                    "the attention dense with skip=."
                )
            return parts[0].parameter
        if isinstance(value, Tensor) or id(value) in self._seen:
            return value
        self._seen[id(value)] = value
        depth = 0 if holders.is_optimizer(value) else depth + (not isinstance(value, holders.CONTAINERS))
        if depth > holders.DEEPEST:
            return value
        if isinstance(value, MutableMapping):
            self._renew_mapping(value, layouts, depth)
        elif isinstance(value, (list, tuple, deque, set, frozenset)):
            return self._renewed_series(value, layouts, depth)
        else:
            for name, content in holders.contents(value):
                fresh = self.renew(content, layouts, depth)
                if fresh is not content and name in vars(value):  # not in a closure: who still holds it is warned of
                    _set(vars(value), name, fresh, self._undo)
        return value

    def _renew_mapping(self, value: MutableMapping[Any, Any], layouts: Sequence[Layout], depth: int) -> None:
        narrow = holders.narrowed(value, layouts) or [layouts] * len(value)
        if isinstance(value.get("params"), list) and "param_names" in value:
            _set(value, "param_names", self._names(value["param_names"], value["params"]), self._undo)
        before, new = list(value.items()), list[tuple[Any, Any]]()
        for follow, (key, content) in zip(narrow, before, strict=True):
            number = key if isinstance(key, int) else id(key)
            for piece in self._new.get(number, ()):
                old = self._old[number]
                if old.is_meta and content:
                    raise ValueError("optimizer must be new where the model is on the meta device, got one with state.")
                of_piece = id(piece.parameter) if isinstance(key, int) else piece.parameter
                new.append((of_piece, piece.of(content, old)))
            if number not in self._new:
                new.append((key, self.renew(content, follow, depth)))
        if any(x is not y for one, other in zip(new, before, strict=False) for x, y in zip(one, other, strict=True)):
            self._undo.callback(_fill, value, before)
            _fill(value, new)

    def _renewed_series(self, value: Any, layouts: Sequence[Layout], depth: int) -> Any:
        owners, narrow = holders.owners(value, layouts), holders.narrowed(value, layouts)
        new: list[Any] = []
        for number, content in enumerate(value):
            owner = content if owners is None else owners[number]
            parts = self._new.get(id(owner), ())
            if owners is None:
                follow = layouts if narrow is None else narrow[number]
                new += [piece.parameter for piece in parts] or [self.renew(content, follow, depth)]
            else:
                new += [piece.of(content, owner) for piece in parts] or [content]
        if len(new) == len(value) and all(x is y for x, y in zip(new, value, strict=True)):
            return value
        if isinstance(value, list):
            self._undo.callback(value.__setitem__, slice(None), list(value))
            value[:] = new
            return value
        if isinstance(value, deque):
            return deque(new, value.maxlen)
        return type(value)._make(new) if hasattr(value, "_make") else type(value)(new)

    def _names(self, names: Sequence[str], params: Sequence[Tensor]) -> list[str]:
        new: list[str] = []
        for name, old in zip(names, params, strict=True):
            parts = self._new.get(id(old), ())
            new += [name.removesuffix(p.old_name) + p.name if p.old_name else name for p in parts] or [name]
        return new


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _fill(home: MutableMapping[Any, Any], items: Sequence[tuple[Any, Any]]) -> None:
    home.clear()
    home.update(items)


def _set(home: MutableMapping[Any, Any], key: Any, value: Any, undo: ExitStack) -> None:
    undo.callback(partial(home.__setitem__, key, home[key]) if key in home else partial(home.pop, key, None))
    home[key] = value
