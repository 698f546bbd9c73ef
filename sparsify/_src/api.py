"""`sparsify()`: plan, check, replace, wrap."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypedDict, overload

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from sparsify._src.conversion import meta_device, replacement, starts, transfer
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.decision import check_something_changes, decide
from sparsify._src.conversion.densities import Density, sparsity
from sparsify._src.conversion.distributions import Distribution, erdos_renyi
from sparsify._src.conversion.linear_maps import DEFAULT, Kinds, checked_kinds
from sparsify._src.conversion.planning import report_of
from sparsify._src.conversion.starts import Start
from sparsify._src.evolution import SET, Evolution
from sparsify._src.evolution.grown_values import GrownValues, Named
from sparsify._src.layers import model_loading
from sparsify._src.training import arguments, holders
from sparsify._src.training.choices import Choices, OnEvolve
from sparsify._src.training.old_weights import retire, watch_old_weights
from sparsify._src.training.optimizer import SparseOptimizer
from sparsify._src.training.optimizer_state import GrownState, Kept, check_elementwise
from sparsify._src.written import explaining, shown_plainly


class Options(TypedDict, total=False):
    """The options of `sparsify`, for type checkers."""

    steps: int | None
    evolution: Evolution
    distribution: Distribution
    skip: Iterable[str]
    kinds: Kinds | type[nn.Module]
    start: Start
    grown_values: GrownValues | Named
    grown_state: GrownState
    on_evolve: OnEvolve | None
    seed: int | None


Wrappable = Optimizer | SparseOptimizer


@overload
def sparsify(
    model: nn.Module, optimizer: Wrappable, density: Density | None = ..., **options: Unpack[Options]
) -> tuple[nn.Module, SparseOptimizer]: ...
@overload
def sparsify(
    model: nn.Module, optimizer: None = ..., density: Density | None = ..., **options: Unpack[Options]
) -> tuple[nn.Module, None]: ...
@overload
def sparsify(
    model: nn.Module, optimizer: Sequence[Wrappable], density: Density | None = ..., **options: Unpack[Options]
) -> tuple[nn.Module, tuple[Any, ...]]: ...
@shown_plainly
@explaining(sparsity)
def sparsify(
    model: nn.Module,
    optimizer: Any = None,
    density: Density | None = None,
    *,
    steps: int | None = None,
    evolution: Evolution = SET(),
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    kinds: Kinds | type[nn.Module] = DEFAULT,
    start: Start = "random",
    grown_values: GrownValues | Named = "zero",
    grown_state: GrownState = "zero",
    on_evolve: OnEvolve | None = None,
    seed: int | None = None,
) -> tuple[nn.Module, Any]:
    """Make `model` truly sparse and `optimizer` evolve its topology: the one line.

    Every trainable nn.Linear becomes a `SparseLinear`, and so does each Conv1D of Hugging Face's and each projection of
    an nn.MultiheadAttention, which becomes a `SparseMultiheadAttention`; convolutions do where `kinds` names them. The
    optimizer's param groups and state move onto the new parameters, at the connections kept. All or nothing: a call
    that raises leaves model and optimizer as they were.

    A model built on the meta device never exists dense: of its sparse layers only the connections are allocated (with
    nn.Linear's initial values at the sparse fan-in), and the other modules initialise themselves.

    Args:
        model: changed in place; a bare nn.Linear comes back replaced.
        optimizer: of the model's parameters, new or in the middle of training; or several, each of a part of the
            model; None for a sparse model without evolution, as for inference. One that `sparsify` returned goes on by
            `evolution`, with its state; a new one takes over a model that is sparse already.
        density: share of weights kept, in (0, 1]: of all layers together that become sparse or are pruned further
            (shared out by `distribution`); or {module-name glob: density} (the first glob that names a layer counts,
            layers that none names stay as they are); or a callable (out_features, in_features) -> density such as
            `epsilon(20)`, which gets (out_channels, in_channels / groups, *kernel_size) of a convolution. Not given
            where `start` gives the connections, unless `evolution` prunes, nor where a sparse model only gets another
            algorithm or optimizer.
        steps: how many optimizer steps the training has, from now on. How often topologies evolve, until when, how much
            is dropped, and how pruning goes follow from it (`Evolution.for_steps`), but for what `evolution` says
            itself. Without it evolution has no end, and algorithms that prune must be given `until`.
        evolution: `SET(...)`, `RigL(...)`, `GraNet(...)`, `GMP(...)`, `Static()` or an `Evolution` of your own. What
            prunes (GMP, GraNet) begins where the model is, if `start` gives the connections or layers are sparse
            already, and not at its start density.
        distribution: shares a float density among layers.
        skip: module-name globs of layers, or of modules that contain them, to leave as they are; or "losing" for those
            that are expected to be slower than dense, at batch 128 on this machine: the density is then shared among
            the rest, until none loses. Not in distributed training, where all ranks need one list: `plan` prints it.
            Convolutions, whose sizes are not known here, `plan(..., example=input)` judges, and prints the list.
        kinds: of layers that become sparse: of nn.Linear, with which attention and Conv1D go, nn.Conv1d, nn.Conv2d and
            nn.Conv3d, which become a `SparseConv1d` and so on. Where `start` is a model or a state dict, that says it.
        start: "random" samples topologies and scales the dense values to the sparse fan-in; "magnitude" keeps the
            largest weights of a trained model as they are, "nonzero" exactly those of a pruned one that are not zero;
            a sparse model gives its topology, for this model's own values; the state dict of a sparse model makes
            `model` that model: the same layers sparse, at the same connections, and everything else loaded too.
        grown_values: what new connections start from: "zero", "fan_in_uniform" (as the first ones of the layer), or a
            function (count, shape, nnz, generator) -> values (count,).
        grown_state: what they find in optimizer buffers: "zero", "mean" (second moments take the mean of the
            survivors'), or a function (name of the buffer, what survivors have there, count) -> (count,).
        on_evolve: is called after each evolution with its `Record`, as in `on_evolve=print`. What it raises, `step()`
            raises; model and optimizer are whole then. It stays behind where the optimizer is pickled.
        seed: of topology and evolution; None takes `torch.initial_seed()`. In distributed training rank 0's counts.
    Returns:
        (model, optimizer); the optimizer is a `SparseOptimizer`, or None if it was None. Of several a tuple in their
        order, in which those that hold no sparse layer are as they were.
    Raises:
        ValueError, TypeError: an argument is out of range or of another kind; evolution could never come in the steps
            given, or would not finish to prune; the model is sparse already and nothing would change, holds a lazy
            layer, or nothing that can be sparse; a module on the meta device cannot initialise itself; the optimizer
            holds none of the linear layers or is not elementwise; two hold the same. Nothing is changed.
    Example:
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model, optimizer = sparsify(model, optimizer, density=0.1, steps=60_000)
        >>> model[0]
        SparseLinear(in_features=784, out_features=300, nnz=20820, density=0.0885, bias=True)
        >>> optimizer.evolution
        SET(interval=200, until=45000)

    Source: Mocanu et al. 2018, Nature Communications 9:2383.
    """
    given = holders.listed(optimizer)
    several = isinstance(optimizer, Sequence)
    if several and not given:
        raise ValueError(f"optimizer must be one, several or None, got none in {optimizer!r}.")
    choices = Choices(evolution, grown_values, grown_state, on_evolve, seed, steps)
    for each in given:
        _check(each, model)
    starts.check(start)
    kinds = checked_kinds(kinds)
    plain = arguments.unwrapped(given)
    decision = decide(model, density, plain, choices.evolution, distribution, skip, start, kinds)
    check_something_changes(model, density, decision, start, kinds, lambda: report_of(model, decision))
    dealt = _deal(decision, plain, several)
    meta_device.check(model, {decision.maps[name].owner for name in decision.first})

    # All is checked. Build what takes the old modules' places.
    seed = torch.initial_seed() if seed is None else seed
    layers = replacement.sparse_layers(decision.maps, decision.first, start, seed)
    replaced, pieces = replacement.assemble(decision.maps, layers)
    old = {module: name for name, module in model.named_modules() if module in replaced}
    layers |= decision.existing

    with ExitStack() as undo:  # put it there; each change says how to undo it
        replacement.replace_modules(model, replaced, undo)
        model = replaced.get(model, model)
        allocated = meta_device.materialize(model, undo)
        wrapped: list[Any] = []
        for each, was, names in zip(plain, given, dealt, strict=True):
            transfer.replace_parameters(each, pieces, allocated, undo)
            own = {name: layers[name] for name, _ in model.named_modules() if name in names}
            if isinstance(was, SparseOptimizer):
                if own:
                    was._self_go_on(own, choices, decision.targets, undo)
            elif own or not several:
                was = SparseOptimizer(each, own, **vars(choices), targets=decision.targets)
                undo.callback(was._self_unhook)
            wrapped.append(was)
        model_loading.watch(model, undo)
        if isinstance(start, Mapping):
            model_loading.load_whole(model, start, undo)
        undo.pop_all()
    weights = retire(old, pieces)
    if not wrapped:
        watch_old_weights(weights, [layers[name] for name in decision.first])
    for each in wrapped:
        if isinstance(each, SparseOptimizer):
            each._self_evolver.old_weights += weights
    return model, tuple(wrapped) if several else wrapped[0] if wrapped else None


def _check(optimizer: object, model: nn.Module) -> None:
    """Raise unless `optimizer` can train `model`; one that is wrapped already may go on by another algorithm."""
    if isinstance(optimizer, SparseOptimizer):
        optimizer._self_evolver.make_whole()
        here, evolved = set(model.modules()), optimizer._self_evolver.layers
        if elsewhere := [name for name, layer in evolved.items() if layer not in here]:
            raise TypeError(
                "optimizer must not be wrapped already, unless model holds all of its sparse layers, got one of layer "
                f"{elsewhere[0]!r} of another. Pass the whole model, or an optimizer of this one."
            )
        if evolved:
            return
    arguments.check_optimizer(optimizer)


def _deal(decision: Decision, optimizers: Sequence[Any], several: bool) -> list[set[str]]:
    """The names of the layers that each optimizer trains.

    Args:
        several: whether one of them may train none.
    Raises:
        ValueError: two train the same layer.
        TypeError: an optimizer keeps state that is not elementwise.
    """
    maps = decision.maps
    weights = {name: maps[name].owner.get_parameter(maps[name].weight) for name in decision.first}
    weights |= {name: layer.values for name, layer in decision.existing.items()}
    dealt = holders.deal(optimizers, weights)
    for each, names in zip(optimizers, dealt, strict=True):
        if names or not several:
            check_elementwise(each)
            Kept(each).check({name: weight for name, weight in weights.items() if name in names})
    return dealt
