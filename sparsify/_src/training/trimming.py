"""`trim`: connections dropped for good, with nothing grown in their place."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsify._src import vectors
from sparsify._src.evolution.drop import magnitude
from sparsify._src.evolution.evolution import check_fraction
from sparsify._src.evolution.growth import uniformly
from sparsify._src.evolution.scopes import lowest_of_each_sign
from sparsify._src.evolution.update import Update, propose_update
from sparsify._src.layers import averaging
from sparsify._src.layers.map import SparseMap
from sparsify._src.swap import Change, Swap, Swapped, leaving_grad_mode
from sparsify._src.training import holders
from sparsify._src.training.evolving import prepare_evolved
from sparsify._src.training.layer_updates import layer_view, prepare_update
from sparsify._src.training.optimizer import SparseOptimizer
from sparsify._src.training.optimizer_state import Kept

Trains = Optimizer | SparseOptimizer


@leaving_grad_mode
def trim(model: nn.Module, drop_fraction: float, optimizer: Trains | Sequence[Trains] | None = None) -> nn.Module:
    """Drop each layer's weakest connections for good and grow nothing: SET's last step, for inference.

    To go on training, name the optimizer: the survivors keep their momentum and moments. An optimizer that is not named
    starts the state of the trimmed layers afresh when it next steps.

    Args:
        model: holds sparse layers; changed in place.
        drop_fraction: share of the positive and of the negative connections to drop, in [0, 1].
        optimizer: the one that trains the model, several that train its parts, or None.
    Returns:
        the model.
    Raises:
        ValueError: drop_fraction is outside [0, 1], the model holds no sparse layer, or two optimizers hold the same.
            Nothing is changed.
        TypeError: an optimizer is none, or holds state that is not elementwise. Nothing is changed.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(100, 100)), None, density=0.1)
        >>> model[0].nnz
        1000
        >>> trim(model, 0.5)[0].nnz in (500, 501)  # half of the positive and half of the negative
        True

    Source: Mocanu et al. 2018, algorithm 1, last step.
    """
    check_fraction(drop_fraction)
    given = holders.listed(optimizer)
    for each in given:
        if not holders.is_optimizer(each):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(each).__name__}.")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseMap)}
    if not layers:
        raise ValueError("model must hold a sparse layer, got none. Make it sparse first: sparsify(model, ...).")
    evolvers = [each._self_evolver for each in given if isinstance(each, SparseOptimizer)]
    for evolver in evolvers:
        evolver.make_whole()
    evolved = {each.layer: each for evolver in evolvers for each in evolver.evolved.values()}
    dealt = holders.deal(given, {name: layer.values for name, layer in layers.items()})
    kept = {name: _kept(each) for each, names in zip(given, dealt, strict=True) for name in names}
    changes: list[Change] = []
    owners: list[Swapped] = [*evolvers, *layers.values()]
    for name, layer in layers.items():
        update, averages = _trimmed(name, layer, drop_fraction), averaging.averages(name, layer)
        each, nothing = evolved.get(layer), layer.values.detach()[:0]
        if name in kept and not (each is not None and each.is_stale):
            kept[name].check({name: layer.values})
        if each is not None:
            changes += prepare_evolved(each, update, nothing, averages, kept[name])
        else:
            changes += prepare_update(layer, update, nothing, kept.get(name), averages=averages)
        owners += averages
    Swap(changes, owners).commit()
    return model


def _kept(optimizer: Any) -> Kept:
    return optimizer._self_evolver.optimizers.kept() if isinstance(optimizer, SparseOptimizer) else Kept(optimizer)


def _trimmed(name: str, layer: SparseMap, drop_fraction: float) -> Update:
    seen = layer_view(name, layer, vectors.generator())
    dropped = lowest_of_each_sign(seen.values, magnitude(seen), drop_fraction)
    return propose_update(seen, dropped, 0, uniformly)
