"""`sparsify()`: plan, check, replace, wrap."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.optim import Optimizer

from sparsify import checkpoint, eligibility, loading, meta, surgery, topology, transfer
from sparsify.candidates import find
from sparsify.distributions import Distribution, erdos_renyi
from sparsify.evolution import SET, Evolution
from sparsify.linear import SparseLinear
from sparsify.optimizer import SparseOptimizer, check_arguments
from sparsify.optimizer_state import GrownState, Kept
from sparsify.planning import FULL, Density, plan
from sparsify.replaced import retire

Start = Literal["random", "magnitude"] | Mapping[str, Any]
"""Where a sparse model's topologies and values come from."""


@overload
def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    density: Density | None = ...,
    *,
    evolution: Evolution = ...,
    distribution: Distribution = ...,
    skip: Iterable[str] = ...,
    start: Start = ...,
    grown_state: GrownState = ...,
    seed: int | None = ...,
) -> tuple[nn.Module, SparseOptimizer]: ...
@overload
def sparsify(
    model: nn.Module,
    optimizer: None,
    density: Density | None = ...,
    *,
    evolution: Evolution = ...,
    distribution: Distribution = ...,
    skip: Iterable[str] = ...,
    start: Start = ...,
    grown_state: GrownState = ...,
    seed: int | None = ...,
) -> tuple[nn.Module, None]: ...
def sparsify(
    model: nn.Module,
    optimizer: Optimizer | None,
    density: Density | None = None,
    *,
    evolution: Evolution = SET(),  # noqa: B008  (frozen)
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    start: Start = "random",
    grown_state: GrownState = "zero",
    seed: int | None = None,
) -> tuple[nn.Module, SparseOptimizer | None]:
    """Make `model` truly sparse and `optimizer` evolve its topology: the one line.

    Every trainable nn.Linear becomes a `SparseLinear`, and so does each Conv1D of Hugging Face's and each projection of
    an nn.MultiheadAttention, which becomes a `SparseMultiheadAttention`. The optimizer's param groups and state move
    onto the new parameters, at the connections kept. All or nothing: a call that raises leaves model and optimizer as
    they were.

    A model built on the meta device never exists dense: of its sparse layers only the connections are allocated (with
    nn.Linear's initial values at the sparse fan-in), and the other modules initialise themselves.

    Args:
        model: changed in place; a bare nn.Linear comes back replaced.
        optimizer: of the model's parameters, new or in the middle of training; None for a sparse model without
            evolution.
        density: share of weights kept, in (0, 1]: of all layers together (shared out by `distribution`); or
            {module-name glob: density} (the first glob that names a layer counts, layers that none names stay dense);
            or a callable (out_features, in_features) -> density such as `epsilon(20)`. Not given where `start` says it.
        evolution: `SET(...)`, `RigL(...)`, `GraNet(...)`, `GMP(...)`, `Static()` or an `Evolution` of your own.
        distribution: shares a float density among layers.
        skip: module-name globs of layers, or of modules that contain them, to leave dense.
        start: "random" samples topologies and scales the dense values to the sparse fan-in; "magnitude" keeps the
            largest weights of a trained model as they are; the state dict of a sparse model makes `model` that model:
            the same layers sparse, at the same connections, and everything else loaded too.
        grown_state: what regrown connections find in optimizer buffers: "zero", or "mean" (second moments take the
            mean of the survivors').
        seed: of topology and evolution; None takes `torch.initial_seed()`. In distributed training rank 0's counts.
    Returns:
        (model, optimizer); the optimizer is a `SparseOptimizer`, or None if it was None.
    Raises:
        ValueError, TypeError: an argument is out of range or of another kind; the model is sparse already, holds a
            lazy layer, or nothing that can be sparse; a module on the meta device cannot initialise itself; the
            optimizer holds none of the linear layers or is not elementwise. Nothing is changed.
    Source: Mocanu et al. 2018, Nature Communications 9:2383.
    """
    if optimizer is not None:
        check_arguments(optimizer, evolution, grown_state, seed)
    if isinstance(start, Mapping):
        if density is not None or tuple(skip):
            raise ValueError(
                "density and skip must not be given where start is a state dict, which says what is sparse."
            )
        targets = first = _counts(model, optimizer, start)
    elif density is None:
        raise TypeError("density must be given, unless start is the state dict of a sparse model.")
    else:
        report = plan(model, density, optimizer=optimizer, distribution=distribution, skip=skip)
        if not report.sparse and not any(layer.reason == FULL for layer in report.dense):
            raise ValueError(f"model must hold an nn.Linear that can be sparse, got none.\n{report}")
        targets = first = {row.name: row.nnz for row in report.sparse}
        if optimizer is not None and evolution.start_density is not None:
            first = _first_counts(model, evolution.start_density, targets, distribution, skip)
    candidates = find(model)
    meta.check(model, {candidates[name].owner for name in targets})

    kept = None if optimizer is None else Kept(optimizer)
    seed = torch.initial_seed() if seed is None else seed
    layers: dict[str, SparseLinear] = {}
    for name in targets:
        owner, linear = candidates[name].owner, candidates[name].linear
        if kept is not None:
            kept.check({name: owner.get_parameter(candidates[name].weight)})
        if isinstance(start, Mapping):
            flat = checkpoint.topology_of(start, f"{name}." if name else "", candidates[name].shape)
            layers[name] = SparseLinear.at(linear, flat)
        else:
            generator = topology.generator(seed, "start", name)
            share = first[name] / linear.weight.numel()
            layers[name] = SparseLinear.from_linear(linear, share, start=start, generator=generator)
        layers[name].transposed = candidates[name].transposed
    replaced, pieces = surgery.assemble(candidates, layers)
    names = {module: name for name, module in model.named_modules() if module in replaced}

    with ExitStack() as undo:
        surgery.replace_modules(model, replaced, undo)
        allocated = meta.materialize(model, undo)
        wrapped = None
        if optimizer is not None:
            transfer.replace_parameters(optimizer, pieces, allocated, undo)
            wrapped = SparseOptimizer(optimizer, layers, evolution, grown_state=grown_state, seed=seed, targets=targets)
            undo.callback(wrapped._self_unhook)
        model = replaced.get(model, model)
        loading.watch(model, undo)
        if isinstance(start, Mapping):
            _load_all(model, start, undo)
        undo.pop_all()
    old_weights = retire(names, pieces)
    if wrapped is not None:
        wrapped._self_evolver.old_weights = old_weights
    return model, wrapped


def _counts(model: nn.Module, optimizer: Optimizer | None, state_dict: Mapping[str, Any]) -> dict[str, int]:
    """Connections of each layer that is sparse in `state_dict`."""
    eligibility.refuse_model(model)
    candidates = find(model)
    reasons = eligibility.why_dense(model, candidates, optimizer)
    names = [prefix.removesuffix(".") for prefix in checkpoint.sparse_layers(state_dict)]
    if not names:
        raise ValueError("start must be the state dict of a sparse model, got one without sparse layers.")
    for name in names:
        to_serve = optimizer is None and reasons.get(name) == eligibility.FROZEN
        if name not in candidates or (name in reasons and not to_serve):
            why = reasons.get(name, "the model has no such linear layer")
            raise ValueError(f"model must be able to have the sparse layers of start, got none at {name!r}: {why}.")
    prefixes = {name: f"{name}." if name else "" for name in names}
    return {name: len(checkpoint.topology_of(state_dict, prefixes[name], candidates[name].shape)) for name in names}


def _load_all(model: nn.Module, state_dict: Mapping[str, Any], undo: ExitStack) -> None:
    """Load `state_dict` whole, or raise ValueError and leave the model to `undo`."""
    for tensor in [*model.parameters(), *model.buffers()]:
        undo.callback(tensor.data.copy_, tensor.detach().clone())
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(f"start must be the state dict of this model, made sparse. {error}") from None


def _first_counts(
    model: nn.Module, density: float, targets: Mapping[str, int], distribution: Distribution, skip: Iterable[str]
) -> dict[str, int]:
    """Connections of each sparse layer where training begins denser than it ends."""
    report = plan(model, density, distribution=distribution, skip=skip)
    counts = {row.name: row.nnz for row in report.layers if row.name in targets}
    if sum(counts.values()) < sum(targets.values()):
        raise ValueError(f"start_density must be at least the density in the end, got {density:g}.")
    return {name: max(count, targets[name]) for name, count in counts.items()}
