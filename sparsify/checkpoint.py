"""What a state dict holds of a sparse layer's weight: a sparse checkpoint of any topology, or a dense one."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsify import averaging, topology
from sparsify.topology import Shape

if TYPE_CHECKING:
    from sparsify.matrix import SparseMatrix

SPARSE = ("values", "crow", "col")


def read(state_dict: Mapping[str, Tensor], prefix: str, shape: Shape) -> tuple[dict[str, Tensor], list[str]]:
    """Find and check the weight of a layer of `shape`: {"weight"} of a dense checkpoint, or the `SPARSE` ones.

    Returns:
        what is found, by name without prefix, and the names that are missing.
    Raises:
        ValueError: a shape is wrong or an index corrupt.
    """
    found = {name: state_dict[prefix + name] for name in (*SPARSE, "weight") if prefix + name in state_dict}
    if found.keys() == {"weight"}:
        if tuple(found["weight"].shape) != shape:
            raise ValueError(f"weight must be {shape}, got {tuple(found['weight'].shape)}.")
        return found, []
    found.pop("weight", None)
    missing = [name for name in SPARSE if name not in found]
    if not missing:
        values = found["values"]
        if values.dim() != 1:
            raise ValueError(f"values must be a vector, got shape {tuple(values.shape)}.")
        topology.check_csr(found["crow"], found["col"], len(values), shape)
    return found, missing


def load(
    layer: "SparseMatrix", state_dict: Mapping[str, Any], prefix: str, errors: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Give `layer` the weight that `state_dict` holds for it, if that is whole and sound; else leave it as it was.

    Returns:
        what of `state_dict` is not the weight's, and the names that are missing.
    """
    taken: Collection[str] = (*SPARSE, "weight")
    missing: list[str] = []
    try:
        if layer.transposed and prefix + "weight" in state_dict:
            state_dict = {**state_dict, prefix + "weight": state_dict[prefix + "weight"].t()}
        found, missing = read(state_dict, prefix, layer.shape)
        taken = found.keys()
        if not missing:
            _take(layer, found)
    except ValueError as error:
        errors.append(f"{prefix.removesuffix('.') or 'SparseLinear'}: {error}")
    return {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in taken}, missing


@torch.no_grad()
def _take(layer: "SparseMatrix", found: dict[str, Tensor]) -> None:
    """Take over a checked weight: a dense one at the layer's topology, a sparse one with its own."""
    if "weight" in found:
        layer.values.copy_(found["weight"].flatten()[layer.flat().to(found["weight"].device)])
    else:
        device = layer.values.device
        flat = topology.from_csr(found["crow"].to(device), found["col"].to(device), layer.shape)
        if torch.equal(flat, layer.flat()):
            layer.values.copy_(found["values"])
        else:
            layer.rewire(flat, found["values"].to(layer.values, copy=True), None)
    averaging.loaded(layer)
