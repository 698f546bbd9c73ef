"""Where training starts: which layers are sparse then, and at which connections, where not a density says it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify import checkpoint, eligibility
from sparsify.candidates import Candidate
from sparsify.linear import SparseLinear
from sparsify.topology import positions

Start = Literal["random", "magnitude", "nonzero"] | Mapping[str, Any] | nn.Module
"""Where a sparse model's topologies and values come from."""

BY_DENSITY = ("random", "magnitude")


def is_by_density(start: object) -> bool:
    """Whether a density says how many connections there are, and not `start`."""
    return isinstance(start, str) and start in BY_DENSITY


def check(start: object) -> None:
    """Raise unless `start` is one."""
    if isinstance(start, (Mapping, nn.Module)) or (isinstance(start, str) and start in (*BY_DENSITY, "nonzero")):
        return
    got = repr(start) if isinstance(start, str) else type(start).__name__
    raise ValueError(
        'start must be "random", "magnitude", "nonzero", the state dict of a sparse model or a sparse model, got '
        f"{got}."
    )


def given_topologies(
    start: Start, candidates: Mapping[str, Candidate], reasons: Mapping[str, str], trains: bool
) -> dict[str, Tensor]:
    """The connections of each layer that becomes sparse, where `start` says them: sorted flat indices.

    Args:
        start: neither "random" nor "magnitude".
        candidates: the linear maps of the model.
        reasons: why some of them cannot be sparse.
        trains: whether there is an optimizer; without one, frozen layers may be sparse too.
    Raises:
        ValueError: `start` holds no sparse layer, or one that the model cannot have.
    """
    if isinstance(start, str):
        found = {name: _nonzero(candidate) for name, candidate in candidates.items() if name not in reasons}
        return {name: flat for name, flat in found.items() if flat is not None}
    theirs = _of_state_dict(start, candidates) if isinstance(start, Mapping) else _of_model(start)
    kind = "state dict of a sparse model" if isinstance(start, Mapping) else "sparse model"
    if not theirs:
        raise ValueError(f"start must be the {kind}, got one without sparse layers.")
    for name, (shape, _) in theirs.items():
        to_serve = not trains and reasons.get(name) == eligibility.FROZEN
        if name not in candidates or (name in reasons and not to_serve):
            why = reasons.get(name, "the model has no such linear layer")
            raise ValueError(f"model must be able to have the sparse layers of start, got none at {name!r}: {why}.")
        if candidates[name].shape != shape:
            raise ValueError(
                f"model must have the shapes of start, got {candidates[name].shape} in layer {name!r}, there {shape}."
            )
    return {name: flat for name, (_, flat) in theirs.items()}


Topologies = dict[str, tuple[tuple[int, int], Tensor]]


def _of_state_dict(state_dict: Mapping[str, Any], candidates: Mapping[str, Candidate]) -> Topologies:
    found = {}
    for prefix in checkpoint.sparse_layers(state_dict):
        name = prefix.removesuffix(".")
        shape = candidates[name].shape if name in candidates else (0, 0)
        flat = checkpoint.topology_of(state_dict, prefix, shape) if name in candidates else torch.empty(0)
        found[name] = shape, flat
    return found


def _of_model(model: nn.Module) -> Topologies:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return {name: (x.shape, x.flat()) for name, x in model.named_modules() if isinstance(x, SparseLinear)}


def _nonzero(candidate: Candidate) -> Tensor | None:
    """Where a dense weight is not zero; None where it is nowhere zero."""
    weight = candidate.linear.weight.detach()
    if weight.is_meta:
        raise ValueError('start must not be "nonzero" for a model on the meta device: it has no weights.')
    active = (weight != 0).flatten()
    return None if bool(active.all()) else positions(active)


def existing(model: nn.Module, held: Sequence[Tensor]) -> dict[str, SparseLinear]:
    """The layers of `model` that are sparse already, and whose values are among the held parameters."""
    ours = {id(parameter) for parameter in held}
    layers = {name: x for name, x in model.named_modules() if isinstance(x, SparseLinear)}
    return {name: x for name, x in layers.items() if id(x._parameters.get("values")) in ours}
