"""Loads models that hold sparse layers: all is checked before anything is changed, and then changed at once."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsify._src import vectors
from sparsify._src.layers import checkpoint, loading
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change, leaving_grad_mode
from sparsify._src.topology import Indices
from sparsify._src.torch_private import loading_hooks


def watch(model: nn.Module, undo: ExitStack) -> None:
    """Register a hook that has each module of `model` load all its sparse layers at once."""
    for module in model.modules():
        hooks = loading_hooks(module)
        known = any(getattr(hook, "hook", hook) is _load_sparse_layers for hook in hooks)
        if not known and any(isinstance(part, SparseMatrix) for part in module.modules()):
            hook = module.register_load_state_dict_pre_hook(_load_sparse_layers)  # type: ignore[no-untyped-call]
            undo.callback(hook.remove)


@leaving_grad_mode
def _load_sparse_layers(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any
) -> None:
    """Before PyTorch loads `module` a tensor at a time: check it and load it as a whole.

    Raises:
        RuntimeError: one is corrupt, or the layers that are sparse in `state_dict` are others than here. Nothing is
            changed.
    """
    errors = rest[-1]
    if loading.has_begun(errors):
        return  # from a module around this one
    named = {
        prefix + name + "." if name else prefix: part for name, part in module.named_modules(remove_duplicate=False)
    }
    state_dict = dict(state_dict)
    for name, part in named.items():
        if isinstance(part, SparseMultiheadAttention):
            part.unpack(state_dict, name)
    layers = [(name, part) for name, part in named.items() if isinstance(part, SparseMatrix)]
    try:
        _check_split(named, state_dict, prefix)
        assigns = metadata.get("assign_to_params_buffers")  # other tensors then, not other numbers
        others = [] if assigns else list(_loading_others(named, state_dict))
        loading.load_together(layers, state_dict, errors, others)
    except ValueError as error:
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{error}") from None


def _check_split(named: Mapping[str, nn.Module], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError unless the layers that are sparse in `state_dict` are those that are sparse here, or none."""
    there = [name for name in checkpoint.sparse_layers(state_dict) if name.startswith(prefix)]
    here = [name for name, part in named.items() if isinstance(part, SparseMatrix)]
    only_there = [name for name in there if name not in here and _is_of(named, name)]
    only_here = [name for name in here if there and name not in there and f"{name}weight" in state_dict]
    if only_there or only_here:
        first, second = (", ".join(repr(name[:-1]) for name in names) or "none" for names in (only_there, only_here))
        raise ValueError(
            f"state_dict must have the same layers sparse as the model, got {first} sparse only in state_dict, and "
            f"{second} only in the model. sparsify(model, optimizer, start=state_dict) makes a dense model the sparse "
            "one of a checkpoint."
        )


def _is_of(named: Mapping[str, nn.Module], name: str) -> bool:
    """Whether there is a layer of this name, or would be if it were sparse."""
    owner = name[: name[:-1].rfind(".") + 1]
    return name in named or isinstance(named.get(owner), nn.MultiheadAttention)


def _loading_others(named: Mapping[str, nn.Module], state_dict: Mapping[str, Any]) -> Iterator[Change]:
    """Prepare to load all but the sparse weights, so that an interruption does not leave one without the other.

    Raises:
        ValueError: a tensor has another shape, and its module does not say that it knows what to do with it.
    """
    for prefix, part in named.items():
        weight = ("values", *Indices._fields) if isinstance(part, SparseMatrix) else ()
        plain = weight or type(part)._load_from_state_dict is nn.Module._load_from_state_dict
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            found = state_dict.get(prefix + name)
            if name in weight or tensor is None or is_lazy(tensor) or not isinstance(found, Tensor) or not tensor.dim():
                continue
            if plain and found.shape != tensor.shape:
                raise ValueError(f"{prefix}{name} must be {tuple(tensor.shape)}, got {tuple(found.shape)}.")
            if found.shape == tensor.shape and _can_be_copied(found, tensor):
                yield partial(_copy, found, tensor)


def _can_be_copied(found: Tensor, tensor: Tensor) -> bool:
    """Whether `found` can be copied into `tensor` without an error; PyTorch loads what cannot."""
    strided = found.layout == tensor.layout == torch.strided and torch.can_cast(found.dtype, tensor.dtype)
    return strided and vectors.holds_numbers(found) and vectors.holds_numbers(tensor)


def _copy(found: Tensor, tensor: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(found)


def load_whole(model: nn.Module, state_dict: Mapping[str, Any], undo: ExitStack) -> None:
    """Load `state_dict` whole, or raise ValueError and leave the model to `undo`."""
    for tensor in [*model.parameters(), *model.buffers()]:
        undo.callback(tensor.data.copy_, tensor.detach().clone())
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"start must be the state dict of this model, made sparse. {error}") from None
