"""What a sparse layer takes from a state dict: a sparse checkpoint of any topology, or a dense one."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsify import topology

if TYPE_CHECKING:
    from sparsify.linear import SparseLinear

NAMES = ("values", "crow", "col", "weight")
"""All that a checkpoint may hold of a layer's weight: the first three are sparse, the last is dense."""


def load(layer: "SparseLinear", state_dict: Mapping[str, Tensor], prefix: str) -> tuple[Collection[str], list[str]]:
    """Load the weight of `layer` from `state_dict`: all of it or nothing.

    A sparse checkpoint brings its topology; a dense one is read at the topology that the layer has.

    Returns:
        the names taken (without prefix), and those missing; where one is missing, nothing is loaded.
    Raises:
        ValueError: a shape is wrong or an index corrupt; nothing is changed.
    """
    found = {name: state_dict[prefix + name] for name in NAMES if prefix + name in state_dict}
    if found.keys() == {"weight"}:
        _load_dense(layer, found["weight"])
        return ["weight"], []
    missing = [name for name in NAMES[:3] if name not in found]
    if not missing:
        _load_sparse(layer, found["values"], found["crow"], found["col"])
    return NAMES[:3], missing


@torch.no_grad()
def _load_dense(layer: "SparseLinear", weight: Tensor) -> None:
    if tuple(weight.shape) != layer.shape:
        raise ValueError(f"weight must be {layer.shape}, got {tuple(weight.shape)}.")
    layer.values.copy_(weight.flatten()[layer.flat().to(weight.device)])


@torch.no_grad()
def _load_sparse(layer: "SparseLinear", values: Tensor, crow: Tensor, col: Tensor) -> None:
    if values.dim() != 1:
        raise ValueError(f"values must be a vector, got shape {tuple(values.shape)}.")
    topology.check_csr(crow, col, len(values), layer.shape)
    crow, col = crow.to(layer.crow), col.to(layer.col)
    if torch.equal(crow, layer.crow) and torch.equal(col, layer.col):
        layer.values.copy_(values)
    else:
        layer.rewire(crow.clone(), col.clone(), values.to(layer.values, copy=True), None)
