"""The same topology on every rank: what ranks must agree on before they evolve, and how that is found out."""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsify._src.distributed import Ranks
from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.layer_view import Passes
from sparsify._src.evolution.update import Update
from sparsify._src.layers.map import SparseMap
from sparsify._src.training.evolved_layers import EvolvedLayer
from sparsify._src.training.explored import Explored
from sparsify._src.training.optimizer_state import Kept
from sparsify._src.training.progress import Progress
from sparsify._src.vectors import fingerprint

WRAP = "After sparsify() wrap the model in DistributedDataParallel, and load the same checkpoint on every rank."
ALONE = "Ranks that train different models: optimizer.process_group = None, or the group of the ranks that train one."
WAYS_OUT = {
    "sparse layers": ALONE,
    "evolution": "Give sparsify() the same evolution on every rank.",
    "step": "Load the same checkpoint on every rank.",
    "evolutions": "Load the same checkpoint on every rank.",
    "seed": "Load the same checkpoint on every rank.",
    "topology": f"{WRAP} {ALONE}",
    "values": f"{WRAP} {ALONE}",
    "optimizer state": "Give sparsify() the same seed= on every rank, and load the same checkpoint.",
    "new topology": "Rules must draw from layer.generator, and add up what is their rank's own: layer.sum_over_ranks.",
}
"""What must be the same on every rank, and what to do where it is not."""


def tell(ranks: Ranks, own: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """What each rank says, in the order of ranks.

    Args:
        own: what this one says: some of `WAYS_OUT` -> a value, or layer -> value, which must be the same on all
            ranks; and other keys, which need not. What is under "own <what>" is shown where `what` differs.
        device: the model's.
    Raises:
        RuntimeError: on every rank, where they differ.
    """
    everyone = ranks.gather(own, device)
    compare(everyone)
    return everyone


def tell_standing(
    ranks: Ranks, layers: Mapping[str, SparseMap], progress: Progress, own: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each rank says: `own`, and where it stands in short hashes, which must be the same.

    Raises:
        RuntimeError: on every rank, where they differ.
    """
    if ranks.group is None:
        return [own]
    where = {
        "sparse layers": {name: (layer.shape, layer.nnz) for name, layer in layers.items()},
        "step": progress.step,
        "evolutions": progress.evolutions,
        "topology": {name: layer.digest for name, layer in layers.items()},
        "values": {name: fingerprint(layer.values) for name, layer in layers.items()},
    }
    return tell(ranks, {**where, **own}, device_of(layers))


def begin_alike(
    ranks: Ranks, evolved: Mapping[str, EvolvedLayer], progress: Progress, algorithm: Evolution, kept: Kept
) -> None:
    """Compare what all ranks begin with; before the first step, rank 0's seed is everyone's.

    Args:
        kept: by the optimizer.
    Raises:
        RuntimeError: on every rank, where they differ, or the algorithm changes the number of connections.
    """
    if algorithm.prunes:
        raise count_changes(algorithm)
    is_new = not progress.step and not progress.evolutions
    layers = {name: each.layer for name, each in evolved.items()}
    own = {
        "evolution": comparable(algorithm),
        "own evolution": repr(algorithm),
        "optimizer state": {name: kept.digest(each.values) for name, each in evolved.items()},
        "seed": None if is_new else progress.seed,
        "own seed": progress.seed,
    }
    everyone = tell_standing(ranks, layers, progress, own)
    if is_new:  # DistributedDataParallel has given every rank the topology of rank 0
        progress.seed = everyone[0]["own seed"]
        progress.explored = {name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()}


def device_of(layers: Mapping[str, SparseMap]) -> torch.device:
    """Where the first of these layers is."""
    return next(iter(layers.values())).values.device


def comparable(rule: object) -> object:
    """What ranks send of a rule, a schedule or an algorithm: of equal ones equal objects, all of which can be pickled.

    A dataclass and a `functools.partial` are compared part by part. Functions, which may be lambdas or closures, are
    compared by their names. Of other objects those are compared by == that are equal to a pickled copy of theirs; the
    others, which are equal to themselves alone, by the name of their type.
    """
    parts: dict[Any, object]
    if isinstance(rule, partial):
        parts = {**dict(enumerate([rule.func, *rule.args])), **rule.keywords}
    elif is_dataclass(rule) and not isinstance(rule, type) and type(rule).__eq__ is not object.__eq__:
        parts = {each.name: getattr(rule, each.name) for each in fields(rule) if each.compare}
    elif hasattr(rule, "__qualname__"):
        return rule.__qualname__
    else:
        return rule if _equals_a_copy(rule) else type(rule).__qualname__
    return type(rule).__qualname__, {name: comparable(part) for name, part in parts.items()}


def compare(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuntimeError unless all ranks say the same of `WAYS_OUT`."""
    first = everyone[0]
    for what in (what for what in WAYS_OUT if what in first):
        others = [rank for rank, told in enumerate(everyone) if told[what] != first[what]]
        if others:
            shown = (told.get(f"own {what}", told[what]) for told in (first, everyone[others[0]]))
            where = _first_difference(*shown)
            ranks = f"rank {others[0]}" if len(others) == 1 else f"ranks {', '.join(map(str, others))}"
            raise RuntimeError(
                f"{what} must be the same on every rank, got another on {ranks} than on rank 0{where}. {WAYS_OUT[what]}"
            )


def count_changes(evolution: Evolution) -> RuntimeError:
    """The error of an algorithm that changes a layer's number of connections."""
    return RuntimeError(
        f"evolution must keep each layer's number of connections in distributed training, got {evolution!r}: "
        "DistributedDataParallel sends gradients of a fixed size. Use SET or RigL at the density of the end."
    )


def check_counts_stay(algorithm: Evolution, updates: Iterable[Update]) -> None:
    """Raise RuntimeError if one of these updates changes the number of a layer's connections."""
    if any(len(update.flat) != update.old_nnz for update in updates):
        raise count_changes(algorithm)


def agree_who_evolves(
    ranks: Ranks,
    layers: Mapping[str, SparseMap],
    progress: Progress,
    ready: set[str],
    gradients: Mapping[str, tuple[Tensor, Passes]],
) -> dict[str, tuple[Tensor | None, Passes]]:
    """The layers that are ready on every rank, with gradient and operands of backward passes where there are any.

    A rank without passes, of a layer where others have some, gets one that adds nothing: all must add up their sums.
    """
    recorded = {name for name, (_, passes) in gradients.items() if passes}
    everyone = tell_standing(ranks, layers, progress, {"ready": ready, "recorded": recorded})
    ready = set.intersection(*(told["ready"] for told in everyone))
    elsewhere = set.union(*(told["recorded"] for told in everyone)) - recorded
    found: dict[str, tuple[Tensor | None, Passes]] = {}
    for name, layer in layers.items():
        if name in ready:
            gradient, passes = gradients.get(name, (None, []))
            found[name] = gradient, [_no_pass(layer)] if name in elsewhere else passes
    return found


def _no_pass(layer: SparseMap) -> tuple[Tensor, Tensor]:
    """The operands of a backward pass that adds nothing, for a rank that had none."""
    zeros, window = layer.values.detach().new_zeros, layer.window
    if window is None:
        return zeros(1, layer.out_features), zeros(1, layer.in_features)
    input = zeros(1, window.in_channels(layer.in_features), *window.extent)
    return zeros(1, layer.out_features, *window.out_size(input.shape[2:])), input


def _equals_a_copy(value: object) -> bool:
    if type(value).__eq__ is object.__eq__:
        return False  # and it is not pickled: it may hold a model
    try:
        return bool(pickle.loads(pickle.dumps(value)) == value)
    except Exception:  # whatever pickling and comparing someone's object may raise
        return False


def _first_difference(one: object, other: object) -> str:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names: Iterable[str] = [*one, *other]
        return next(f" in layer {name!r}" for name in names if one.get(name) != other.get(name))
    return f": {other} and {one}"
