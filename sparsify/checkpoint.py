"""What a state dict holds of sparse weights, sparse of any topology or dense, and how layers take it over."""

from collections.abc import Collection, Mapping
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from sparsify import copies, topology
from sparsify.swap import Change, Swap
from sparsify.telling import warn
from sparsify.topology import Shape

if TYPE_CHECKING:
    from sparsify.matrix import SparseMatrix

SPARSE = ("values", "crow", "col")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sparse_layers(state_dict: Mapping[str, Any]) -> list[str]:
    """The prefixes (names with a dot in the end) of the layers whose weight is sparse in `state_dict`."""
    prefixes = [key.removesuffix("crow") for key in state_dict if key.split(".")[-1] == "crow"]
    return [prefix for prefix in prefixes if all(prefix + part in state_dict for part in SPARSE)]


def read(layer: "SparseMatrix", state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Find and check the weight of `layer`.

    Returns:
        {"weight"} of a dense checkpoint, or the `SPARSE` ones, by name without prefix; where one of these is missing,
        none.
    Raises:
        ValueError: something is no tensor, a shape is wrong, or an index corrupt.
    """
    found = {name: state_dict[prefix + name] for name in (*SPARSE, "weight") if prefix + name in state_dict}
    try:
        if found.keys() == {"weight"}:
            return {"weight": _checked_weight(found["weight"], layer)}
        if not found.keys() >= set(SPARSE):
            return {}
        topology_of(found, "", layer.shape)
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
        topology.check_vector("values", values, DTYPES)
        topology.check_csr(crow, col, len(values), shape)
    except ValueError as error:
        raise ValueError(prefix + str(error)) from None
    return topology.from_csr(crow.resolve_neg(), col.resolve_neg(), shape)


def _checked_weight(weight: object, layer: "SparseMatrix") -> Tensor:
    """A dense weight as (out_features, in_features)."""
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}.")
    shape = layer.shape[::-1] if layer.transposed else layer.shape
    if tuple(weight.shape) != shape:
        raise ValueError(f"weight must be {shape}, got {tuple(weight.shape)}.")
    topology.check_vector("weight", weight.flatten() if weight.layout == torch.strided else weight, DTYPES)
    return weight.detach().t() if layer.transposed else weight.detach()


@torch.no_grad()
def take_over(
    layers: Collection[tuple[str, "SparseMatrix"]], state_dict: Mapping[str, Any], beside: Collection[Change] = ()
) -> list["SparseMatrix"]:
    """Give each layer the weight that `state_dict` has for it under its prefix; all of them or none.

    A dense weight is taken over at the topology that is there, with a warning of what does not find a place.

    Args:
        beside: what else to do where this is done.

    Returns:
        the layers that have their weight now; for others there is none, or none that is whole.
    Raises:
        ValueError: what one finds is not sound. Nothing is changed.
    """
    weights, errors = [], []
    for prefix, layer in layers:
        try:
            if found := read(layer, state_dict, prefix):
                weights.append((layer, found, _replacement(layer, found)))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n\t".join(errors))
    loaded = [layer for layer, *_ in weights]
    changes = [change for *_, change in weights]
    Swap([*changes, *beside, *(partial(copies.loaded, layer) for layer in loaded)], loaded).commit()
    _say_what_was_left_out([(layer, found["weight"]) for layer, found, _ in weights if "weight" in found])
    return loaded


def _replacement(layer: "SparseMatrix", found: Mapping[str, Tensor]) -> Change:
    device = layer.values.device
    if "weight" in found:
        flat = layer.flat()
        return layer.replacement(flat, found["weight"].flatten()[flat.to(found["weight"].device)], layer.values.grad)
    crow, col = (found[name].resolve_neg().to(device) for name in ("crow", "col"))
    flat = topology.from_csr(crow, col, layer.shape)
    stays = layer.is_checked() and topology.digest(flat) == layer.digest
    return layer.replacement(flat, found["values"].clone(), layer.values.grad if stays else None)


def _say_what_was_left_out(dense: Collection[tuple["SparseMatrix", Tensor]]) -> None:
    given = kept = 0.0
    for layer, weight in dense:
        magnitude = weight.flatten().abs()
        given += float(magnitude.sum(dtype=torch.float64))
        kept += float(magnitude[layer.flat().to(weight.device)].sum(dtype=torch.float64))
    if kept < given * (1 - 1e-9):
        warn(
            f"The dense weights of {len(dense)} sparse layers were loaded at the connections that are there: "
            f"{1 - kept / given:.1%} of their magnitude was left out. To keep the largest weights of a dense model, "
            'load it before sparsify(..., start="magnitude"), or start="nonzero" for all that a pruned one has.',
        )


class _Loading(local):
    """The call of `load_state_dict` that this thread is in: its list of errors, and which layers have their weight."""

    errors: list[str] | None = None
    done: "WeakSet[SparseMatrix]"


_loading = _Loading()


def has_begun(errors: list[str]) -> bool:
    """Whether the loading that collects its errors in this list has gone through `load_together`."""
    return _loading.errors is errors


def load_together(
    layers: Collection[tuple[str, "SparseMatrix"]],
    state_dict: Mapping[str, Any],
    errors: list[str],
    beside: Collection[Change],
) -> None:
    """Load all these layers at once; each knows later that it has its weight.

    Raises:
        ValueError: one is corrupt, or not whole. Nothing is changed.
    """
    for prefix, _ in layers:
        there = [name for name in SPARSE if prefix + name in state_dict]
        if 0 < len(there) < len(SPARSE):
            missing = ", ".join(prefix + name for name in SPARSE if name not in there)
            raise ValueError(f"state_dict must hold the whole of a sparse weight, got none of {missing}.")
    _loading.errors, _loading.done = errors, WeakSet(take_over(layers, state_dict, beside))


def load(
    layer: "SparseMatrix", state_dict: Mapping[str, Any], prefix: str, errors: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Give `layer` the weight that `state_dict` holds for it, if that is whole and sound; else leave it as it was.

    Returns:
        what of `state_dict` is not the weight's, and the names that are missing.
    """
    names = {name for name in (*SPARSE, "weight") if prefix + name in state_dict}
    missing = [] if names == {"weight"} else [name for name in SPARSE if name not in names]
    if not missing and not (has_begun(errors) and layer in _loading.done):
        try:
            take_over([(prefix, layer)], state_dict)
        except ValueError as error:
            errors.append(str(error))
    taken = names if names == {"weight"} else names - {"weight"}
    return {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in taken}, missing
