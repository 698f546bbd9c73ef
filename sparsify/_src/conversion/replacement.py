"""Puts sparse layers in the place of dense ones in a model. All of it can be undone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from sparsify._src import progress_bar, vectors
from sparsify._src.conversion.linear_maps import LinearMap
from sparsify._src.conversion.starts import Start
from sparsify._src.conversion.transfer import Piece, Pieces
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.convolution import SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.layers.map import SparseMap

Part = SparseMap | nn.Linear
"""What comes in the place of a linear map: its sparse layer, or a projection left dense."""


SPARSE: dict[type[nn.Module], type[SparseMap]] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.Conv3d: SparseConv3d,
}
"""Which sparse layer takes the place of which dense one."""


MANY = 2**24
"""Connections of which so many take some two seconds to draw."""


def sparse_layers(
    maps: Mapping[str, LinearMap], first: Mapping[str, int | Tensor], start: Start, seed: int
) -> dict[str, SparseMap]:
    """The sparse layers that take the place of dense ones, by name; a bar is shown where that takes long.

    Args:
        maps: the linear maps of a model.
        first: the connections of each layer at first: so many, or these.
        seed: of what is drawn.
    """
    counts = {name: len(given) if isinstance(given, Tensor) else given for name, given in first.items()}
    total, found = sum(counts.values()), dict[str, SparseMap]()
    with progress_bar.shown("making sparse layers", total, " connections", at_once=total > MANY) as advance:
        for name, connections in first.items():
            found[name] = sparse_layer(maps[name], connections, start, vectors.generator(seed, "start", name))
            advance(counts[name])
    return found


def sparse_layer(
    linear_map: LinearMap, connections: int | Tensor, start: Start, generator: torch.Generator
) -> SparseMap:
    """The sparse layer that takes the place of a dense one.

    Args:
        connections: at first: so many, or these.
    """
    how: Literal["random", "magnitude"] = "random" if start == "random" else "magnitude"
    layer = SPARSE[linear_map.kind].replacing(linear_map.dense, connections, start=how, generator=generator)
    layer.transposed = linear_map.transposed
    return layer


def assemble(
    maps: Mapping[str, LinearMap], layers: Mapping[str, SparseMap]
) -> tuple[dict[nn.Module, nn.Module], Pieces]:
    """Build the modules that will replace those with a sparse layer in them; nothing is changed yet.

    Args:
        maps: the linear maps of a model, by name.
        layers: the sparse layers of those that become sparse.
    Returns:
        old module -> new module, and what becomes of their parameters.
    """
    owners = {maps[name].owner for name in layers}
    modules: dict[nn.Module, dict[str, Part]] = defaultdict(dict)
    pieces: dict[nn.Parameter, list[Piece]] = defaultdict(list)
    for name, linear_map in maps.items():
        if linear_map.owner in owners:
            modules[linear_map.owner][linear_map.projection] = layers.get(name) or _left_dense(linear_map)
            for piece in _pieces(linear_map, modules[linear_map.owner][linear_map.projection]):
                old = linear_map.owner.get_parameter(piece.old_name)
                vars(piece.parameter).update(piece.of(vars(old), old))  # marks such as no_weight_decay
                pieces[old].append(piece)
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


def _pieces(linear_map: LinearMap, layer: Part) -> Iterator[Piece]:
    """Which old parameters, or parts of them, the new parameters of `layer` replace."""
    if isinstance(layer, SparseMap):
        flat = layer.flat()
        take = partial(_at, linear_map, flat)
        scale = _scale(layer.values.detach(), take(linear_map.owner.get_parameter(linear_map.weight).detach()))
        yield Piece(layer.values, linear_map.weight, linear_map.within("values"), take, scale)
    elif layer.weight is not linear_map.owner.get_parameter(linear_map.weight):
        yield Piece(
            layer.get_parameter("weight"), linear_map.weight, linear_map.within("weight"), partial(_whole, linear_map)
        )
    if layer.bias is not None and layer.bias is not linear_map.owner.get_parameter(linear_map.bias):
        yield Piece(layer.get_parameter("bias"), linear_map.bias, linear_map.within("bias"), linear_map.of_bias)


def _at(linear_map: LinearMap, flat: Tensor, tensor: Tensor) -> Tensor:
    return linear_map.of_weight(tensor).flatten()[flat]


def _whole(linear_map: LinearMap, tensor: Tensor) -> Tensor:
    return linear_map.of_weight(tensor).clone()


def _scale(new: Tensor, old: Tensor) -> float:
    """The factor by which the values of a sparse layer were scaled."""
    if old.is_meta or not len(old):
        return 1.0
    largest = old.abs().argmax()
    return float(new[largest] / old[largest]) if old[largest] else 1.0


def _left_dense(linear_map: LinearMap) -> nn.Linear:
    """The linear map as a layer of its own, where others of its owner become sparse: a projection of attention."""
    linear = linear_map.dense
    assert isinstance(linear, nn.Linear)
    weight = linear.weight
    if weight is not linear_map.owner.get_parameter(linear_map.weight):  # a view would keep all of it in memory
        linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        linear.weight.grad = None if weight.grad is None else weight.grad.clone()
    return linear


def _assembled(owner: nn.Module, parts: Mapping[str, Part]) -> nn.Module:
    if "" in parts:
        return parts[""]
    assert isinstance(owner, nn.MultiheadAttention)
    projections = {name: part for name, part in parts.items() if isinstance(part, (SparseLinear, nn.Linear))}
    attention = SparseMultiheadAttention(owner, projections)
    if owner.out_proj.weight.is_meta:
        attention.reset_own_biases()
    return attention


def _has_sparse(module: nn.Module) -> bool:
    return any(isinstance(child, SparseMap) for child in module.modules())


def _set(owner: object, name: str, value: object, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
