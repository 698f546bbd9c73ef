"""Puts sparse layers in the place of dense ones, in a model and in its optimizer. All of it can be undone."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sparsify import optimizer_state
from sparsify.attention import Projection, SparseMultiheadAttention
from sparsify.candidates import Candidate
from sparsify.linear import SparseLinear


class Piece(NamedTuple):
    """A parameter that takes the place of an old one, or of a part of it.

    parameter: the new one.
    old_name, name: of the old and of the new one, as seen from the module that is replaced.
    take: gives its part of a tensor that has the old one's shape.
    """

    parameter: nn.Parameter
    old_name: str
    name: str
    take: Callable[[Tensor], Tensor]


Pieces = dict[nn.Parameter, list[Piece]]
"""Old parameter -> what takes its place."""


def assemble(
    candidates: Mapping[str, Candidate], layers: Mapping[str, SparseLinear]
) -> tuple[dict[nn.Module, nn.Module], Pieces]:
    """Make what takes the place of every module that has become sparse in part; nothing is changed yet.

    Args:
        candidates: the linear maps of a model, by name.
        layers: the sparse layers of those that become sparse.
    Returns:
        old module -> new module, and what becomes of their parameters.
    """
    owners = {candidates[name].owner for name in layers}
    modules: dict[nn.Module, dict[str, Projection]] = defaultdict(dict)
    pieces: Pieces = defaultdict(list)
    for name, candidate in candidates.items():
        if candidate.owner in owners:
            modules[candidate.owner][candidate.part] = layers.get(name) or _left_dense(candidate)
            for piece in _pieces(candidate, modules[candidate.owner][candidate.part]):
                pieces[candidate.owner.get_parameter(piece.old_name)].append(piece)
    return {owner: _assembled(owner, parts) for owner, parts in modules.items()}, pieces


def replace_modules(model: nn.Module, replaced: Mapping[nn.Module, nn.Module], undo: ExitStack) -> None:
    """Put the new modules where the old ones are, at every place of each in the tree."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replaced:
                undo.callback(parent._modules.__setitem__, name, child)
                parent._modules[name] = replaced[child]
    # The fused inference paths of these two read `linear1.weight` as a dense tensor: switch them off.
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_sparse(module):
            _set(module, "activation_relu_or_gelu", 0, undo)
        elif isinstance(module, nn.TransformerEncoder) and _has_sparse(module):
            _set(module, "use_nested_tensor", False, undo)


def replace_parameters(
    optimizer: Optimizer, pieces: Pieces, allocated: Mapping[nn.Parameter, nn.Parameter], undo: ExitStack
) -> None:
    """Put the new parameters where the old ones are in the param groups, and carry the state over.

    Args:
        optimizer: changed in place.
        pieces: old parameter -> what takes its place.
        allocated: parameters on the meta device -> what they have become.
        undo: learns how to take it back.
    Raises:
        ValueError: the optimizer has state for a parameter on the meta device.
    """
    if isinstance(optimizer, LBFGS):  # one history for all parameters, in their old sizes
        undo.callback(optimizer.state.update, dict(optimizer.state))
        optimizer.state.clear()
        _set(optimizer, "_numel_cache", None, undo)
    for group in optimizer.param_groups:
        parts = {old: pieces.get(old) or [Piece(old, "", "", _all)] for old in group["params"]}
        new = {"params": [allocated.get(p.parameter, p.parameter) for part in parts.values() for p in part]}
        if "param_names" in group:
            named = zip(group["param_names"], parts.values(), strict=True)
            new["param_names"] = [name.removesuffix(p.old_name) + p.name for name, part in named for p in part]
        for old, part in parts.items():
            if old in optimizer.state and (old in pieces or old in allocated):
                _move_state(optimizer, old, part, undo)
        for key, content in new.items():
            undo.callback(group[key].__setitem__, slice(None), list(group[key]))
            group[key][:] = content


def _move_state(optimizer: Optimizer, old: nn.Parameter, parts: Sequence[Piece], undo: ExitStack) -> None:
    if old.is_meta:
        raise ValueError("optimizer must be new where the model is on the meta device, got one with state.")
    state = optimizer.state.pop(old)
    undo.callback(optimizer.state.__setitem__, old, state)
    for part in parts:
        undo.callback(optimizer.state.pop, part.parameter, None)
        optimizer.state[part.parameter] = optimizer_state.part(state, old.shape, part.take)


def _pieces(candidate: Candidate, layer: Projection) -> Iterator[Piece]:
    """What the parameters of `layer` take the place of, where they are new."""
    if isinstance(layer, SparseLinear):
        flat = layer.flat()
        yield Piece(layer.values, candidate.weight, candidate.within("values"), partial(_at, candidate, flat))
    elif layer.weight is not candidate.owner.get_parameter(candidate.weight):
        yield Piece(
            layer.get_parameter("weight"), candidate.weight, candidate.within("weight"), partial(_whole, candidate)
        )
    if layer.bias is not None and layer.bias is not candidate.owner.get_parameter(candidate.bias):
        yield Piece(layer.get_parameter("bias"), candidate.bias, candidate.within("bias"), candidate.of_bias)


def _at(candidate: Candidate, flat: Tensor, tensor: Tensor) -> Tensor:
    return candidate.of_weight(tensor).flatten()[flat]


def _whole(candidate: Candidate, tensor: Tensor) -> Tensor:
    return candidate.of_weight(tensor).clone()


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _left_dense(candidate: Candidate) -> nn.Linear:
    """The linear map as a layer of its own, where others of its owner become sparse."""
    linear, weight = candidate.linear, candidate.linear.weight
    if weight is not candidate.owner.get_parameter(candidate.weight):  # a view would keep all of it in memory
        linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        linear.weight.grad = None if weight.grad is None else weight.grad.clone()
    return linear


def _assembled(owner: nn.Module, parts: Mapping[str, Projection]) -> nn.Module:
    if "" in parts:
        return parts[""]
    assert isinstance(owner, nn.MultiheadAttention)
    attention = SparseMultiheadAttention(owner, parts)
    if owner.out_proj.weight.is_meta:
        attention.reset_parameters()
    return attention


def _has_sparse(module: nn.Module) -> bool:
    return any(isinstance(child, SparseLinear) for child in module.modules())


def _set(owner: object, name: str, value: object, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
