"""Loads the sparse layers of a model together: all are checked before one is changed."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsify import checkpoint
from sparsify.attention import SparseMultiheadAttention
from sparsify.matrix import SparseMatrix
from sparsify.topology import Indices


def watch(model: nn.Module, undo: ExitStack) -> None:
    """Have each module of `model` that holds sparse layers load them together."""
    for module in model.modules():
        if any(isinstance(part, SparseMatrix) for part in module.modules()):
            undo.callback(module.register_load_state_dict_pre_hook(_load_sparse_layers).remove)


def _load_sparse_layers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before anything of `module` is loaded: check and load the weights of its sparse layers.

    Raises:
        RuntimeError: one is corrupt, or the layers that are sparse in `state_dict` are others than here. Nothing is
            changed.
    """
    errors = rest[-1]
    if checkpoint.has_begun(errors):
        return  # from a module around this one
    named = {prefix + name + "." if name else prefix: part for name, part in module.named_modules(remove_duplicate=False)}
    state_dict = dict(state_dict)
    for name, part in named.items():
        if isinstance(part, SparseMultiheadAttention):
            part.unpack(state_dict, name)
    layers = [(name, part) for name, part in named.items() if isinstance(part, SparseMatrix)]
    try:
        _check_split(named, state_dict, prefix)
        _check_shapes(named, state_dict)
        checkpoint.load_together(layers, state_dict, errors)
    except ValueError as error:
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{error}") from None


def _check_split(named: Mapping[str, nn.Module], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raise ValueError unless the layers that are sparse in `state_dict` are those that are sparse here, or none."""
    there = [name for name in checkpoint.sparse_layers(state_dict) if name.startswith(prefix)]
    owners = {name: named.get(name.removesuffix(".").rpartition(".")[0] + ".") for name in there}
    only_there = [
        name
        for name in there
        if (name in named and not isinstance(named[name], SparseMatrix)) or isinstance(owners[name], nn.MultiheadAttention)
    ]
    sparse_here = [name for name, part in named.items() if isinstance(part, SparseMatrix) and name not in there]
    only_here = [name for name in sparse_here if there and f"{name}weight" in state_dict]
    if only_there or only_here:
        lists = [", ".join(repr(name.removesuffix(".")) for name in names) or "none" for names in (only_there, only_here)]
        raise ValueError(
            f"state_dict must have the same layers sparse as the model, got {lists[0]} sparse in it alone and {lists[1]} "
            "in the model alone. sparsify(model, optimizer, start=state_dict) makes the sparse model of a checkpoint from "
            "a dense one."
        )


def _check_shapes(named: Mapping[str, nn.Module], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError where another tensor than a sparse weight has another shape, before PyTorch loads in part."""
    for prefix, part in named.items():
        plain = type(part)._load_from_state_dict is nn.Module._load_from_state_dict
        if not isinstance(part, SparseMatrix) and not plain:
            continue  # it may know what to do with other shapes
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            found = state_dict.get(prefix + name)
            sparse = isinstance(part, SparseMatrix) and name in ("values", *Indices._fields)
            if sparse or tensor is None or not isinstance(found, Tensor) or is_lazy(tensor) or not tensor.dim():
                continue
            if found.shape != tensor.shape:
                raise ValueError(f"{prefix}{name} must be {tuple(tensor.shape)}, got {tuple(found.shape)}.")
