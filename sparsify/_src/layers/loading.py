"""How sparse layers take over the weights of a state dict: all of them at once, or none."""

from collections.abc import Collection, Mapping
from functools import partial
from threading import local
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from sparsify._src import topology
from sparsify._src.layers import checkpoint, copies
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change, Swap
from sparsify._src.warning import warn


@torch.no_grad()
def take_over(
    layers: Collection[tuple[str, SparseMatrix]], state_dict: Mapping[str, Any], beside: Collection[Change] = ()
) -> list[SparseMatrix]:
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
            if found := checkpoint.read(state_dict, prefix, layer.shape, layer.transposed, layer.weight_shape):
                weights.append((layer, found, _prepare_weight(layer, found)))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n\t".join(errors))
    loaded = [layer for layer, *_ in weights]
    changes = [change for *_, change in weights]
    Swap([*changes, *beside, *(partial(copies.loaded, layer) for layer in loaded)], loaded).commit()
    _say_what_was_left_out([(layer, found["weight"]) for layer, found, _ in weights if "weight" in found])
    return loaded


def _prepare_weight(layer: SparseMatrix, found: Mapping[str, Tensor]) -> Change:
    device = layer.values.device
    if "weight" in found:
        flat = layer.flat()
        return layer.prepare_topology(
            flat, found["weight"].flatten()[flat.to(found["weight"].device)], layer.values.grad
        )
    crow, col = (found[name].resolve_neg().to(device) for name in ("crow", "col"))
    flat = topology.from_csr(crow, col, layer.shape)
    stays = layer.is_checked() and topology.digest(flat) == layer.digest
    return layer.prepare_topology(flat, found["values"].clone(), layer.values.grad if stays else None)


def _say_what_was_left_out(dense: Collection[tuple[SparseMatrix, Tensor]]) -> None:
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
    """State of this thread's call of `load_state_dict`: its list of errors, and the layers loaded so far."""

    errors: list[str] | None = None
    done: "WeakSet[SparseMatrix]"


_loading = _Loading()


def has_begun(errors: list[str]) -> bool:
    """Whether the loading that collects its errors in this list has gone through `load_together`."""
    return _loading.errors is errors


def load_together(
    layers: Collection[tuple[str, SparseMatrix]],
    state_dict: Mapping[str, Any],
    errors: list[str],
    beside: Collection[Change],
) -> None:
    """Load all these layers at once; each knows later that it has its weight.

    Raises:
        ValueError: one is corrupt, or not whole. Nothing is changed.
    """
    for prefix, _ in layers:
        there = [name for name in checkpoint.SPARSE if prefix + name in state_dict]
        if 0 < len(there) < len(checkpoint.SPARSE):
            missing = ", ".join(prefix + name for name in checkpoint.SPARSE if name not in there)
            raise ValueError(f"state_dict must hold the whole of a sparse weight, got none of {missing}.")
    _loading.errors, _loading.done = errors, WeakSet(take_over(layers, state_dict, beside))


def load(
    layer: SparseMatrix, state_dict: Mapping[str, Any], prefix: str, errors: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Give `layer` the weight that `state_dict` holds for it, if that is whole and sound; else leave it as it was.

    Returns:
        what of `state_dict` is not the weight's, and the names that are missing.
    """
    names = {name for name in (*checkpoint.SPARSE, "weight") if prefix + name in state_dict}
    missing = [] if names == {"weight"} else [name for name in checkpoint.SPARSE if name not in names]
    if not missing and not (has_begun(errors) and layer in _loading.done):
        try:
            take_over([(prefix, layer)], state_dict)
        except ValueError as error:
            errors.append(str(error))
    taken = names if names == {"weight"} else names - {"weight"}
    return {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in taken}, missing
