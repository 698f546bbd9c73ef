"""What a state dict holds of sparse weights, sparse of any topology or dense: found and checked, nothing changed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify._src import topology, vectors
from sparsify._src.topology import Shape

SPARSE = ("values", "crow", "col")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sparse_layers(state_dict: Mapping[str, Any]) -> list[str]:
    """The prefixes (names with a dot in the end) of the layers whose weight is sparse in `state_dict`."""
    prefixes = [key.removesuffix("crow") for key in state_dict if key.split(".")[-1] == "crow"]
    return [prefix for prefix in prefixes if all(prefix + part in state_dict for part in SPARSE)]


def read(
    state_dict: Mapping[str, Any], prefix: str, shape: Shape, transposed: bool, weight_shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """Find and check the weight of the layer of `shape` under `prefix`.

    Args:
        transposed: whether a dense weight is (in_features, out_features).
        weight_shape: of a dense weight.
    Returns:
        {"weight"} (out_features, in_features) of a dense checkpoint, or the `SPARSE` ones, by name without prefix;
        where one of these is missing, none.
    Raises:
        ValueError: something is no tensor, a shape is wrong, or an index corrupt.
    """
    found = {name: state_dict[prefix + name] for name in (*SPARSE, "weight") if prefix + name in state_dict}
    try:
        if found.keys() == {"weight"}:
            return {"weight": _checked_weight(found["weight"], weight_shape, transposed)}
        if not found.keys() >= set(SPARSE):
            return {}
        topology_of(found, "", shape)
    except ValueError as error:
        raise ValueError(prefix + str(error)) from None
    return {name: found[name] for name in SPARSE}


def topology_of(state_dict: Mapping[str, Any], prefix: str, shape: Shape) -> Tensor:
    """The flat indices of the layer of `shape` that is sparse in `state_dict` under `prefix`.

    Raises:
        ValueError: it is corrupt.
    """
    values, crow, col = (state_dict[prefix + name] for name in SPARSE)
    try:
        vectors.check_vector("values", values, DTYPES)
        topology.check_csr(crow, col, len(values), shape)
    except ValueError as error:
        raise ValueError(prefix + str(error)) from None
    return topology.from_csr(crow.resolve_neg(), col.resolve_neg(), shape)


def _checked_weight(weight: object, expected: tuple[int, ...], transposed: bool) -> Tensor:
    """A dense weight as (out_features, in_features)."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}.")
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight must be {expected}, got {tuple(weight.shape)}.")
    vectors.check_vector("weight", weight.flatten() if weight.layout == torch.strided else weight, DTYPES)
    return weight.detach().t() if transposed else weight.detach().flatten(1)
