"""`trim`: connections dropped for good, with nothing grown in their place."""

from collections.abc import Mapping
from itertools import chain

from torch import nn
from torch.optim import Optimizer

from sparsify import averaging, topology
from sparsify.evolution.algorithms import check_fraction
from sparsify.evolution.drop import magnitude
from sparsify.evolution.evolve import Update, replaced
from sparsify.evolution.growth import uniformly
from sparsify.evolution.rewire import rewiring, view
from sparsify.evolution.scopes import lowest_of_each_sign
from sparsify.linear import SparseLinear
from sparsify.optimizer import SparseOptimizer
from sparsify.optimizer_state import Kept
from sparsify.swap import Change, Swap, Swapped


def trim(model: nn.Module, drop_fraction: float, optimizer: Optimizer | None = None) -> nn.Module:
    """Drop each layer's weakest connections for good and grow nothing: SET's last step, for inference.

    To go on training, name the optimizer: the survivors keep their momentum and moments. An optimizer that is not named
    starts the state of the trimmed layers afresh when it next steps.

    Args:
        model: holds sparse layers; changed in place.
        drop_fraction: share of the positive and of the negative connections to drop, in [0, 1].
        optimizer: the one that trains the model, or None.
    Returns:
        the model.
    Raises:
        ValueError: drop_fraction is outside [0, 1], or the model holds no sparse layer. Nothing is changed.
        TypeError: the optimizer is none, or holds state that is not elementwise. Nothing is changed.
    Source: Mocanu et al. 2018, algorithm 1, last step.
    """
    check_fraction(drop_fraction)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}.")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not layers:
        raise ValueError("model must hold a SparseLinear, got none. Make it sparse first: sparsify(model, ...).")
    evolver = optimizer._self_evolver if isinstance(optimizer, SparseOptimizer) else None
    if evolver is not None:
        evolver.check_whole()
    updates = {name: _trimmed(name, layer, drop_fraction) for name, layer in layers.items()}
    averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
    known: Mapping[str, SparseLinear] = {} if evolver is None else evolver.layers
    names = {id(layer): name for name, layer in known.items()}
    stale: list[str] = [] if evolver is None else evolver.stale()
    kept = None if optimizer is None else Kept(optimizer)
    changes: list[Change] = []
    for name, layer in layers.items():
        theirs, nothing = names.get(id(layer)), layer.values.detach()[:0]
        if kept is not None and theirs not in stale:
            kept.check({name: layer.values})
        if evolver is not None and theirs is not None:
            changes += evolver.rewiring(theirs, updates[name], nothing, averages[name], theirs in stale, kept)
        else:
            changes += rewiring(layer, updates[name], nothing, kept, averages=averages[name])
    owners: list[Swapped] = [*layers.values(), *chain.from_iterable(averages.values())]
    owners += [] if evolver is None else [evolver]
    Swap(changes, owners).commit()
    return model


def _trimmed(name: str, layer: SparseLinear, drop_fraction: float) -> Update:
    seen = view(name, layer, topology.generator())
    dropped = lowest_of_each_sign(seen.values, magnitude(seen), drop_fraction)
    return replaced(seen, dropped, 0, uniformly)
