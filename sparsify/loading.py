"""Loads the sparse layers of a model together: all are checked before one is changed."""

from contextlib import ExitStack
from typing import Any

from torch import nn

from sparsify import checkpoint
from sparsify.attention import SparseMultiheadAttention
from sparsify.matrix import SparseMatrix


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
        _check_same_layers_are_sparse(named, state_dict, prefix)
        checkpoint.load_together(layers, state_dict, errors)
    except ValueError as error:
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n\t{error}") from None


def _check_same_layers_are_sparse(named: dict[str, nn.Module], state_dict: dict[str, Any], prefix: str) -> None:
    sparse_there = [name for name in checkpoint.sparse_layers(state_dict) if name.startswith(prefix)]
    for name in sparse_there:
        owner = name.removesuffix(".").rpartition(".")[0] + "."
        dense_here = name in named and not isinstance(named[name], SparseMatrix)
        if dense_here or isinstance(named.get(owner), nn.MultiheadAttention):
            raise ValueError(_other_layers(name, "sparse", "dense"))
    for name, part in named.items():
        if sparse_there and isinstance(part, SparseMatrix) and name not in sparse_there and name + "weight" in state_dict:
            raise ValueError(_other_layers(name, "dense", "sparse"))


def _other_layers(name: str, there: str, here: str) -> str:
    return (
        f"state_dict must have the same layers sparse as the model, got {name.removesuffix('.')!r}, which is {there} in it "
        f"and {here} in the model. sparsify(model, optimizer, start=state_dict) makes the sparse model of a checkpoint, "
        "from a dense one."
    )
