"""`untouched`: a model may be run, and is as it was afterwards."""

import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsify._src.layers.layer import SparseLayer

PLAIN = (dict, OrderedDict, list, set)
"""What a module holds of these (hooks, buffers, whatever its user keeps there) has the same elements afterwards."""

OF_SPARSE = ("training", "observer", "remarks")
"""What a sparse layer has afterwards as before. It alone knows what belongs together of the rest, and keeps that so."""


@contextmanager
def untouched(model: nn.Module, to_meta: bool) -> Iterator[None]:
    """Whatever runs within leaves parameters' gradients, buffers, attributes and hooks of all modules as they are, and
    the random generators too.

    Args:
        to_meta: whether parameters and buffers are all on the meta device meanwhile.
    """
    with ExitStack() as undo:
        _keep_random(model, undo)
        stand_ins: dict[int, Tensor] = {}
        for parameter in model.parameters():
            undo.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            is_sparse = isinstance(module, SparseLayer)
            undo.callback(_kept(module, OF_SPARSE if is_sparse and not to_meta else None))
            if isinstance(module, SparseLayer):  # nobody is to be told that it was evaluated
                module.observer = None
                module.remarks = None
            if to_meta or not is_sparse:  # which only reads its buffers
                _replace(module._buffers, stand_ins, to_meta, lambda x: x)
            if to_meta:
                _replace(module._parameters, stand_ins, to_meta, partial(nn.Parameter, requires_grad=False))
        yield


def _replace(held: dict[str, Any], stand_ins: dict[int, Tensor], to_meta: bool, make: Callable[..., Tensor]) -> None:
    """Put another tensor in the place of each; the same one where two are the same."""
    for name, tensor in held.items():
        if tensor is not None and not (to_meta and tensor.is_meta):
            if id(tensor) not in stand_ins:
                copied = tensor.detach().to("meta") if to_meta else tensor.detach().clone()
                stand_ins[id(tensor)] = make(copied).requires_grad_(tensor.requires_grad)
            held[name] = stand_ins[id(tensor)]


def _kept(module: nn.Module, names: Collection[str] | None) -> Callable[[], None]:
    """What brings the attributes of a module back as they are now: these, or all."""
    before = {name: value for name, value in vars(module).items() if names is None or name in names}
    inside = [(held, held.copy()) for held in before.values() if type(held) in PLAIN]

    def bring_back() -> None:
        now = vars(module)
        for name in (now.keys() if names is None else now.keys() & names) - before.keys():
            del now[name]
        now.update(before)
        for held, elements in inside:
            held.clear()
            held.extend(elements) if isinstance(held, list) else held.update(elements)

    return bring_back


def _keep_random(model: nn.Module, undo: ExitStack) -> None:
    """The generators of Python, NumPy and PyTorch, here and on the devices where the model is."""
    undo.callback(random.setstate, random.getstate())
    undo.callback(np.random.set_state, np.random.get_state())
    places = {x.device for x in (*model.parameters(), *model.buffers())}
    indices: dict[str, list[int]] = {}
    for device in places:
        if device.type not in ("cpu", "meta"):
            indices.setdefault(device.type, []).append(device.index or 0)
    undo.enter_context(torch.random.fork_rng(devices=[]))
    for kind, devices in indices.items():
        if kind == "mps":  # it has one generator, which takes no number of a device
            undo.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        else:
            undo.enter_context(torch.random.fork_rng(devices, device_type=kind))
