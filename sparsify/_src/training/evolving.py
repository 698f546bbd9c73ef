"""One evolution, prepared: the rules are asked, their answers checked, and all changes made ready to be carried out."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from sparsify._src import vectors
from sparsify._src.distributed import Ranks
from sparsify._src.evolution.grown_values import grown_values_of
from sparsify._src.evolution.layer_view import Passes
from sparsify._src.evolution.scopes import across_layers
from sparsify._src.evolution.update import Update, checked_grown_values, propose_updates
from sparsify._src.layers import averaging
from sparsify._src.layers.averaging import Average
from sparsify._src.swap import Change, Swapped
from sparsify._src.training import strangers
from sparsify._src.training.agreement import check_counts_stay, device_of, tell
from sparsify._src.training.choices import Choices
from sparsify._src.training.evolved_layers import EvolvedLayer
from sparsify._src.training.layer_updates import layer_view, prepare_update
from sparsify._src.training.optimizer_state import GrownState, Kept
from sparsify._src.training.progress import Progress

Ready = Mapping[str, tuple[Tensor | None, Passes]]
"""Layers that evolve -> gradient of the values, and operands of the backward passes that made it, where kept."""


class Prepared(NamedTuple):
    """An evolution that is ready to be carried out.

    updates: what becomes of each layer's topology.
    changes: what carries it out, all but the record of it.
    owners: what these change.
    """

    updates: dict[str, Update]
    changes: list[Change]
    owners: list[Swapped]


def prepare_evolution(
    choices: Choices,
    progress: Progress,
    ranks: Ranks,
    evolved: Mapping[str, EvolvedLayer],
    ready: Ready,
    kept: Kept,
    drop_fraction: float,
) -> Prepared:
    """Ask the rules of the algorithm what becomes of the `ready` ones of the `evolved` layers; nothing is changed yet.

    Args:
        kept: the optimizer state that moves along.
    Raises:
        ValueError, TypeError: a rule broke its contract, or state is not elementwise.
        RuntimeError: ranks differ, or an average cannot follow.
    """
    algorithm, values_of = choices.evolution, grown_values_of(choices.grown_values)
    layers = {name: evolved[name].layer for name in ready}
    kept.check({name: evolved[name].values for name in ready if not evolved[name].is_stale})
    strangers.look_around(layers)
    averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
    views, excess = [], []
    for name, layer in layers.items():
        generator = vectors.generator(progress.seed, "evolution", progress.evolutions, name)
        views.append(layer_view(name, layer, generator, *ready[name], ranks.sum))
        excess.append(progress.excess(algorithm, name, layer.nnz))
    if algorithm.scope is across_layers and excess:  # what rests may have given connections away
        of_all = sum(progress.excess(algorithm, name, each.layer.nnz) for name, each in evolved.items())
        excess[0] -= max(0, sum(excess) - of_all)
    proposed = propose_updates(algorithm, views, excess, drop_fraction) if views else []
    updates = dict(zip(layers, proposed, strict=True))
    grown = {seen.name: checked_grown_values(values_of, updates[seen.name], seen) for seen in views}
    if ranks.group is not None:
        digests = {name: vectors.fingerprint(update.flat, grown[name]) for name, update in updates.items()}
        tell(ranks, {"new topology": digests}, device_of({name: each.layer for name, each in evolved.items()}))
        check_counts_stay(algorithm, updates.values())
    changes = chain.from_iterable(
        prepare_evolved(evolved[name], update, grown[name], averages[name], kept, choices.grown_state)
        for name, update in updates.items()
    )
    return Prepared(updates, list(changes), [*layers.values(), *chain.from_iterable(averages.values())])


def prepare_evolved(
    each: EvolvedLayer,
    update: Update,
    grown: Tensor,
    averages: Sequence[Average],
    kept: Kept,
    grown_state: GrownState = "zero",
) -> Iterator[Change]:
    """Prepare to carry out `update` of a layer, with its optimizer state; nothing is changed yet.

    State that belongs to another topology than the layer has starts afresh.

    Args:
        grown: the values of the new connections.
        averages: of the layer's values, which evolve alike.
        kept: all optimizer state.
    """
    stale = each.is_stale
    yield from prepare_update(each.layer, update, grown, None if stale else kept, grown_state, averages)
    if stale:
        yield from kept.prepare_afresh(each.values, update.move(each.values.detach(), grown.to(each.values)))
    yield each.note_topology
