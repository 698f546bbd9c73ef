"""`seen`: how a model calls its layers, found out by one forward pass over an example."""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.rnn import PackedSequence

from sparsify._src.checks import described, shown
from sparsify._src.conversion import calls
from sparsify._src.conversion.calls import Call, Seen
from sparsify._src.conversion.linear_maps import KINDS, LinearMap, find
from sparsify._src.conversion.untouched import untouched
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Shape

WAYS = "a tensor, a tuple of positional arguments or a dict of keyword arguments, as the model is called with"
"""What an example may be."""

LONGEST = 300
"""As much of what a model raised is repeated."""


def arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Those that a model is called with.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(example, (Tensor, PackedSequence)):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        if names := [name for name in example if not isinstance(name, str)]:
            raise TypeError(
                f"example must have names of arguments for keys, got {shown(names[0])}. A model that takes a dict gets "
                "it in a tuple: ({...},)."
            )
        return (), dict(example)
    way_out = ""
    if isinstance(example, list):
        way_out = " Of a batch of a data loader pass the input alone; a model that takes a list gets it in a tuple."
    elif hasattr(example, "__array__"):
        way_out = " torch.as_tensor(...) makes a tensor."
    raise TypeError(f"example must be {WAYS}, got {type(example).__name__}.{way_out}")


def seen(model: nn.Module, example: object) -> Seen:
    """Run `model` on `example` once, and tell how each row of its report was called. Nothing stays of that.

    Raises:
        TypeError: `example` is none.
        ValueError: the model holds a lazy layer, or raises.
    """
    args, kwargs = arguments(example)
    for name, module in model.named_modules():
        if any(isinstance(parameter, UninitializedParameter) for parameter in module._parameters.values()):
            raise ValueError(
                f"model must know its shapes, got an uninitialized {type(module).__name__} in layer {name!r}. Run one "
                "forward pass first."
            )
    to_meta = any(parameter.is_meta for parameter in model.parameters())
    with ExitStack() as stack:
        stack.enter_context(untouched(model, to_meta))
        found, watching = _watched(model)  # within: to read a weight may be to compute it
        for watched, note in watching.items():
            hook = watched.register_forward_hook(note, prepend=True, with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # what is compiled would call no hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if to_meta:
            stack.enter_context(torch.device("meta"))
        args, kwargs = _copied((args, kwargs), to_meta)
        try:
            model(*args, **kwargs)
        except Exception as error:  # whatever the model, or a hook of its user's, may raise
            raise ValueError(_fault(model, args, kwargs, error)) from error
    return {name: None if None in each else tuple(filter(None, each)) for name, each in found.items()}


def _watched(model: nn.Module) -> tuple[dict[str, list[Call | None]], dict[nn.Module, Callable[..., None]]]:
    """The calls of each row of a report, none yet, and the hooks that will note them."""
    owned: dict[nn.Module, dict[str, LinearMap]] = defaultdict(dict)
    for name, linear_map in find(model, KINDS).items():
        owned[linear_map.owner][name] = linear_map
    inside = {part for owner in owned for part in owner.modules()}
    found: dict[str, list[Call | None]] = {}
    hooks: dict[nn.Module, Callable[..., None]] = {}

    def watch(name: str, module: nn.Module, shape: Shape | None) -> None:
        known: list[Call | None] = [None] if isinstance(module, torch.jit.ScriptModule) else []
        found[name] = known
        if not known:
            hooks[module] = partial(_note, known, shape)

    for name, module in model.named_modules():
        if isinstance(module, SparseMap):
            watch(name, module, module.shape)
        elif module in owned and isinstance(module, nn.MultiheadAttention):
            projections = {linear_map.projection: key for key, linear_map in owned[module].items()}
            found |= {key: [] for key in projections.values()}
            hooks[module] = partial(_note_attention, {part: found[key] for part, key in projections.items()})
        elif module in owned:
            for key, linear_map in owned[module].items():
                watch(key, module, linear_map.shape)
        elif module not in inside and any(p is not None and p.dim() > 1 for p in module._parameters.values()):
            watch(name, module, None)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module not in owned:  # it reads weights as it likes
            for part, _ in module.named_modules(prefix=name):
                found[part] = [None]
    return found, hooks


def _note(
    found: list[Call | None], shape: Shape | None, module: nn.Module, args: Any, kwargs: Any, output: object
) -> None:
    found.append(calls.of(module, shape, args, kwargs, output))


def _note_attention(
    found: Mapping[str, list[Call | None]], module: nn.MultiheadAttention, args: Any, kwargs: Any, output: object
) -> None:
    for projection, call in calls.of_attention(module, args, kwargs).items():
        found[projection].append(call)


def _copied(given: Any, to_meta: bool) -> Any:
    """The same arguments, whose tensors may be written to."""
    if isinstance(given, Tensor):
        copied = given.detach().to("meta") if to_meta else given.detach().clone()
        return copied.requires_grad_(given.requires_grad)
    if isinstance(given, PackedSequence):
        return given._replace(data=_copied(given.data, to_meta))
    if type(given) in (tuple, list):
        return type(given)(_copied(each, to_meta) for each in given)
    if type(given) is dict:
        return {name: _copied(each, to_meta) for name, each in given.items()}
    return given


def _fault(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> str:
    """What is said where `model` raised `error`."""

    def written(value: object) -> str:
        return described(value) if isinstance(value, Tensor) else shown(value)

    each = [written(value) for value in args] + [f"{name}={written(value)}" for name, value in kwargs.items()]
    words = " ".join(str(error).split())
    words = words if len(words) <= LONGEST else f"{words[:LONGEST]}..."
    way_out = "A tuple holds positional arguments, a dict those by name."
    if model.training and "training" in words:
        way_out = "It is run as it is, here in training mode; model.eval() before is another."
    if any(parameter.is_meta for parameter in model.parameters()):
        way_out = "On the meta device there are sizes, but no numbers: what depends on numbers cannot run."
    return (
        f"example must be what the model can be called with, got ({', '.join(each)}): the model raised "
        f"{type(error).__name__}: {words.rstrip('.')}. {way_out}"
    )
