"""Finds the optimizers inside an optimizer (SAM, Lookahead), and every tensor that they keep for a parameter."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

DEEPEST = 2
"""How many objects that are no containers may lie between an optimizer and a tensor that is still found."""

CLOSED = (Tensor, nn.Module, type, ModuleType, torch.Generator, torch.device, torch.dtype, str, bytes, int, float)
"""What is not looked into."""

CONTAINERS = (Mapping, list, tuple, deque, set, frozenset)

Layout = Sequence[Sequence[Tensor]]
"""The parameters of each param group."""


class Buffer(NamedTuple):
    """A tensor that an optimizer keeps.

    tensor: itself; whoever else holds it sees what is written to it.
    parameter: for which it is kept; None where that cannot be told.
    key: its name, "" where it has none.
    """

    tensor: Tensor
    parameter: Tensor | None
    key: str


class Place(NamedTuple):
    """Where the search is: a value, the parameter and the name it belongs to, what its lists may follow, how deep."""

    value: Any
    parameter: Tensor | None = None
    key: str = ""
    layouts: Sequence[Layout] = ()
    depth: int = 0


def is_optimizer(value: object) -> bool:
    """Whether `value` has param groups and steps, as torch's optimizers and wrappers of them."""
    if isinstance(value, (*CLOSED, *CONTAINERS)):
        return False
    return callable(getattr(value, "step", None)) and isinstance(getattr(value, "param_groups", None), list)


def listed(given: object) -> list[Any]:
    """The optimizers that an argument gives which takes one, several or None."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def optimizers(*roots: object) -> list[Any]:
    """All optimizers that these are or hold, the outermost first."""
    return [place.value for place in _everything([Place(root) for root in roots], {}) if is_optimizer(place.value)]


def parameters(*roots: object) -> list[Tensor]:
    """What all their param groups hold, each once."""
    held = {id(p): p for layout in layouts(*optimizers(*roots)) for group in layout for p in group}
    return list(held.values())


def deal(optimizers: Sequence[object], weights: Mapping[str, Tensor]) -> list[set[str]]:
    """The names of the layers that are each optimizer's: those whose weight it holds.

    Raises:
        ValueError: two hold the same.
    """
    held = [{id(p) for p in parameters(each)} for each in optimizers]
    dealt = [{name for name, weight in weights.items() if id(weight) in ids} for ids in held]
    for name in weights:
        if sum(name in names for names in dealt) > 1:
            raise ValueError(f"a layer must be trained by one optimizer, got several that hold that of {name!r}.")
    return dealt


def layouts(*optimizers: Any) -> list[Layout]:
    """The parameters of each of these optimizers, group by group."""
    return [[group["params"] for group in each.param_groups] for each in optimizers]


def buffers(*roots: object) -> list[Buffer]:
    """Every tensor that these optimizers keep, beside the parameters.

    A tensor is kept for a parameter where a dict has it under that parameter (or its `id`), where it stands in a list
    as the parameter stands in `param_groups`, and where it is an attribute of the parameter. LBFGS, which has one
    history for all parameters, is left out.
    """
    follow = layouts(*optimizers(*roots))
    held = {id(p): p for layout in follow for group in layout for p in group}
    places = [Place(root, layouts=follow) for root in roots]
    places += [Place(list(vars(p).values()), p) for p in held.values() if vars(p)]
    found: dict[int, Buffer] = {}
    for value, parameter, key, *_ in _everything(places, held):
        if isinstance(value, Tensor) and id(value) not in held:
            known = found.get(id(value))
            if known is None or known.parameter is None:
                found[id(value)] = Buffer(value, parameter, key)
    return list(found.values())


def tensors(value: object) -> list[Tensor]:
    """All tensors in nested containers."""
    return [place.value for place in _everything([Place(value)], {}) if isinstance(place.value, Tensor)]


def contents(value: object) -> list[tuple[object, Any]]:
    """What a container or an object holds, by key, position or name."""
    if isinstance(value, CLOSED):
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, CONTAINERS):
        return list(enumerate(value))
    if isinstance(value, FunctionType):
        return [(number, cell.cell_contents) for number, cell in enumerate(value.__closure__ or ()) if _is_full(cell)]
    if isinstance(value, MethodType):
        return [("", value.__self__)]
    if isinstance(value, partial):
        return list(enumerate((value.func, value.args, value.keywords)))
    return [(name, part) for name, part in getattr(value, "__dict__", {}).items() if _may_keep(value, name)]


def owners(value: object, follow: Sequence[Layout]) -> Sequence[Tensor] | None:
    """The parameters to which the tensors of a list belong: those of all groups, or of one, in their order."""
    if not isinstance(value, (list, tuple, deque)) or not value or not all(isinstance(x, Tensor) for x in value):
        return None
    for layout in follow:
        for order in [[p for group in layout for p in group], *layout]:
            if _fits(value, order) and not all(x is p for x, p in zip(value, order, strict=True)):
                return order
    return None


def narrowed(value: object, follow: Sequence[Layout]) -> list[Sequence[Layout]] | None:
    """For each part of `value` the param group that its lists follow, where each part belongs to one."""
    if isinstance(value, Mapping) and isinstance(value.get("params"), list):  # a param group
        return [[[list(value["params"])]]] * len(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, (list, tuple)) for part in value):
        return None
    for layout in follow:
        if len(layout) == len(value) > 0 and all(map(_fits, value, layout)):
            return [[[group]] for group in layout]
    return None


def _everything(places: Sequence[Place], held: Mapping[int, Tensor]) -> Iterator[Place]:
    """All that can be reached, breadth first, each container once."""
    seen: dict[int, Any] = {}  # and kept alive, so that no number comes twice
    waiting = deque(places)
    while waiting:
        place = waiting.popleft()
        value, parameter, key, follow, depth = place
        if id(value) in seen and not isinstance(value, Tensor):
            continue
        seen[id(value)] = value
        yield place
        depth += not isinstance(value, CONTAINERS)
        if is_optimizer(value):
            depth = 0
        if depth > DEEPEST:
            continue
        order = owners(value, follow) if parameter is None else None
        narrow = narrowed(value, follow)
        for number, (name, part) in enumerate(contents(value)):
            owner = parameter
            if owner is None and order is not None:
                owner = order[number]
            elif owner is None and isinstance(value, Mapping):
                owner = name if isinstance(name, Tensor) else held.get(name) if isinstance(name, int) else None
            own_key = name if isinstance(name, str) else key
            waiting.append(Place(part, owner, own_key, follow if narrow is None else narrow[number], depth))


def _fits(value: Sequence[Any], order: Sequence[Tensor]) -> bool:
    return len(value) == len(order) and all(
        isinstance(x, Tensor) and x.shape == p.shape for x, p in zip(value, order, strict=True)
    )


def _may_keep(value: object, name: str) -> bool:
    """Whether an attribute may hold buffers: hooks hold the programs of others, and LBFGS no elementwise state."""
    if isinstance(value, LBFGS) and name == "state":
        return False
    return not name.endswith("_hooks")


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
