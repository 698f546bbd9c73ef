"""`trim`: connections dropped for good, with nothing grown in their place."""

from itertools import chain

from torch import nn
from torch.optim import Optimizer

from sparsify import averaging, optimizer_state, topology
from sparsify.evolution.algorithms import check_fraction
from sparsify.evolution.drop import magnitude
from sparsify.evolution.evolve import Update, replaced
from sparsify.evolution.growth import uniformly
from sparsify.evolution.rewire import rewiring, view
from sparsify.evolution.scopes import lowest_of_each_sign
from sparsify.linear import SparseLinear
from sparsify.optimizer import SparseOptimizer
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
        TypeError: the optimizer holds state that is not elementwise. Nothing is changed.
    Source: Mocanu et al. 2018, algorithm 1, last step.
    """
    check_fraction(drop_fraction)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not layers:
        raise ValueError("model must hold a SparseLinear, got none. Make it sparse first: sparsify(model, ...).")
    updates = {name: _trimmed(name, layer, drop_fraction) for name, layer in layers.items()}
    averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
    evolver = optimizer._self_evolver if isinstance(optimizer, SparseOptimizer) else None
    known: dict[SparseLinear, str] = {}
    if evolver is not None:
        known = {layer: name for name, layer in evolver.layers.items()}
    changes: list[Change] = []
    for name, layer in layers.items():
        if optimizer is not None:
            optimizer_state.check_elementwise(optimizer, layer.values, name)
        nothing = layer.values.detach()[:0]
        if evolver is not None and layer in known:
            stale = known[layer] in evolver.stale()
            changes += evolver.rewiring(known[layer], updates[name], nothing, averages[name], stale)
        else:
            changes += rewiring(layer, updates[name], nothing, optimizer, averages=averages[name])
    owners: list[Swapped] = [*layers.values(), *chain.from_iterable(averages.values())]
    owners += [] if evolver is None else [evolver]
    Swap(changes, owners).commit()
    return model


def _trimmed(name: str, layer: SparseLinear, drop_fraction: float) -> Update:
    seen = view(name, layer, topology.generator())
    dropped = lowest_of_each_sign(seen.values, magnitude(seen), drop_fraction)
    return replaced(seen, dropped, 0, uniformly)
