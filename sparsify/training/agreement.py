"""The same topology on every rank: what ranks must agree on before they evolve, and how that is found out."""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import Ranks
from sparsify.evolution.algorithms import Evolution
from sparsify.layers.linear import SparseLinear
from sparsify.topology import fingerprint

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


def standing(layers: Mapping[str, SparseLinear], step: int, evolutions: int) -> dict[str, Any]:
    """Where a rank stands, in short hashes."""
    return {
        "sparse layers": {name: (layer.shape, layer.nnz) for name, layer in layers.items()},
        "step": step,
        "evolutions": evolutions,
        "topology": {name: layer.digest for name, layer in layers.items()},
        "values": {name: fingerprint(layer.values) for name, layer in layers.items()},
    }


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


def no_pass(layer: SparseLinear) -> tuple[Tensor, Tensor]:
    """The operands of a backward pass that adds nothing, for a rank that had none."""
    zeros = layer.values.detach().new_zeros
    return zeros(1, layer.out_features), zeros(1, layer.in_features)


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
