"""Loads the state of an optimizer: checked before anything changes, or put back where it cannot be."""

import copy
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sparsify._src.swap import Change
from sparsify._src.topology import Digest
from sparsify._src.torch_private import version
from sparsify._src.training import holders
from sparsify._src.training.holders import Buffer
from sparsify._src.training.optimizer_state import Kept

KEY = "sparsify"
"""Of what evolution needs, in an optimizer's state dict."""


def joined(optimizer: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The state dict of `optimizer` with what evolution needs under "sparsify".

    It stands in the first param group too, because torch.distributed.checkpoint keeps nothing else.
    """
    state = optimizer.state_dict()
    if is_standard(optimizer):
        first, *others = state["param_groups"]
        state = {**state, "param_groups": [{**first, KEY: own}, *others]}
    return {**state, KEY: own}


def split(state_dict: object) -> tuple[Any, dict[str, Any]]:
    """What evolution needs of a state dict that was `joined`, and the optimizer's own state dict.

    Raises:
        ValueError: it is no dict, or holds nothing for evolution.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict must be a dict, got {type(state_dict).__name__}.")
    groups = state_dict.get("param_groups")
    listed = groups if isinstance(groups, (list, tuple)) else []
    kept = [group[KEY] for group in listed if isinstance(group, Mapping) and KEY in group]
    own = state_dict.get(KEY, *kept[:1])
    if own is None:
        raise ValueError(f'state_dict must hold "{KEY}", as a SparseOptimizer\'s does, got {list(state_dict)}.')
    plain = {key: value for key, value in state_dict.items() if key != KEY}
    if kept:
        plain["param_groups"] = [
            {key: option for key, option in group.items() if key != KEY} if isinstance(group, Mapping) else group
            for group in listed
        ]
    return own, plain


def is_standard(optimizer: Any) -> bool:
    """Whether its state dict is made as torch's are, and can be checked before it is loaded."""
    if type(optimizer).state_dict is Optimizer.state_dict:
        return True
    return {"state", "param_groups"} <= set(optimizer.state_dict())


def check_state_dict(optimizer: Optimizer, lengths: Mapping[nn.Parameter, int], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, unless `state_dict` may hold the state of `optimizer`.

    Args:
        lengths: values of sparse layers -> the length of their buffers in `state_dict`.
    """
    theirs, ours, states = state_dict.get("param_groups"), optimizer.param_groups, state_dict.get("state")
    if not isinstance(theirs, (list, tuple)):
        raise ValueError(f"state_dict['param_groups'] must be a list, got {type(theirs).__name__}.")
    if not isinstance(states, Mapping):
        raise ValueError(f"state_dict['state'] must be a dict, got {type(states).__name__}.")
    sizes = [len(group["params"]) if isinstance(group, Mapping) and "params" in group else None for group in theirs]
    if sizes != [len(group["params"]) for group in ours]:
        raise ValueError(
            f"state_dict['param_groups'] must have {[len(group['params']) for group in ours]} parameters, got {sizes}."
        )
    if isinstance(optimizer, LBFGS):
        return  # one history for all parameters
    keys = [key for group in theirs for key in group["params"]]
    if odd := [key for key in keys if not isinstance(key, (int, str))]:
        raise ValueError(f"state_dict['param_groups'] must name parameters by numbers or names, got {odd[0]!r}.")
    pairs = list(zip(keys, [parameter for group in ours for parameter in group["params"]], strict=True))
    entries = {key: states.get(key, {}) for key in keys}
    for key, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"state_dict['state'][{key!r}] must be a dict, got {type(entry).__name__}.")
    vectors = {name for entry in entries.values() for name, x in entry.items() if isinstance(x, Tensor) and x.dim()}
    vectors |= {buffer.key for buffer in holders.buffers(optimizer) if buffer.tensor.dim()}
    for key, parameter in pairs:
        for name, buffer in entries[key].items() if parameter in lengths else ():
            where, nnz = f"state_dict['state'][{key!r}][{name!r}]", lengths[parameter]
            within = holders.tensors(buffer)
            for tensor in within:
                fits = tensor.shape == (nnz,) or (tensor.numel() == 1 and name not in vectors)
                if tensor.layout != torch.strided or tensor.is_meta or not fits:
                    kind = f"{tensor.dtype} {tuple(tensor.shape)} of layout {tensor.layout} on {tensor.device}"
                    raise ValueError(
                        f"{where} must be a number or a vector of the layer's {nnz} connections, got {kind}."
                    )
            is_kind = within and isinstance(buffer, (Tensor, dict, list, tuple, deque))
            maybe_none = buffer is None and name == "momentum_buffer"  # which SGD may have or not
            if name in vectors and not (is_kind or maybe_none):
                raise ValueError(f"{where} must be a tensor, got {type(buffer).__name__}.")


def load(
    optimizer: Any,
    state_dict: Any,
    layers: Mapping[str, tuple[nn.Parameter, Digest, Digest]],
    keeping: Callable[[], Kept],
) -> None:
    """Load the state of `optimizer`, and of those that it holds.

    Buffers that are not in it, such as those of an optimizer inside another, start afresh where they are of another
    topology than the one that is loaded.

    Args:
        layers: name -> values, the topology that their buffers belong to, and the one that those loaded belong to.
        keeping: what is kept, when it is called.
    Raises:
        ValueError: what was loaded does not fit, which shows only then where an optimizer has a format of its own.
            Nothing is changed.
    """
    before, standard = keeping(), is_standard(optimizer)
    if standard and len(before.optimizers) == 1:
        optimizer.load_state_dict(state_dict)
        return
    backup = copy.deepcopy(optimizer.state_dict())
    try:
        optimizer.load_state_dict(state_dict)
        kept, changes, given = keeping(), list[Change](), {id(tensor) for tensor in holders.tensors(state_dict)}
        for name, (values, held, loaded) in layers.items():
            left = _left(kept.of(values), before, given)
            if not standard:
                _check_loaded(name, kept.of(values), loaded[0], left)
            if held != loaded:
                numbers = values.detach() if len(values) == loaded[0] else values.new_zeros(loaded[0])
                changes += kept.prepare_fill(values, numbers, left)
    except Exception:
        optimizer.load_state_dict(backup)
        raise
    for change in changes:
        change()


def _left(buffers: Sequence[Buffer], before: Kept, given: Collection[int]) -> list[Buffer]:
    """Those that loading has left as they were `before`, and that were not among the tensors `given` to it."""
    return [
        buffer
        for buffer in buffers
        if before.versions.get(id(buffer.tensor)) == version(buffer.tensor) and id(buffer.tensor) not in given
    ]


def _check_loaded(layer: str, buffers: Sequence[Buffer], nnz: int, left: Sequence[Buffer]) -> None:
    """Raise ValueError unless what was loaded is of `nnz` connections."""
    others = {id(buffer.tensor) for buffer in left}
    for tensor, _, key in buffers:
        if id(tensor) not in others and tensor.numel() != 1 and tensor.shape != (nnz,):
            raise ValueError(
                f"state_dict must hold vectors of the {nnz} connections of layer {layer!r}, got {key!r} of "
                f"{tuple(tensor.shape)}."
            )
