"""What happens to optimizer state where a topology was replaced under it, by loading, `trim` or `reset_parameters`."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from sparsify.swap import Change
from sparsify.training.evolved_layers import EvolvedLayer
from sparsify.training.explored import Explored
from sparsify.training.optimizer_state import Kept
from sparsify.training.progress import Progress
from sparsify.warning import warn


def with_state(stale: Sequence[EvolvedLayer], kept: Kept) -> list[EvolvedLayer]:
    """Those of these layers that have optimizer state."""
    return [each for each in stale if kept.has_any(each.values)]


def prepare_afresh(stale: Sequence[EvolvedLayer], kept: Kept) -> list[Change]:
    """Prepare to start the optimizer state of these layers afresh: it belongs to other topologies."""
    afresh = chain.from_iterable(kept.afresh(each.values) for each in stale)
    return [*afresh, *(each.note_topology for each in stale)]


def prepare_reset(reset: Mapping[str, EvolvedLayer], kept: Kept, progress: Progress) -> list[Change]:
    """Prepare for layers that were reset: state of values and bias starts afresh, and their places are explored."""
    explored, changes = dict[str, Explored](), list[Change]()
    for name, each in reset.items():
        explored[name] = copy.copy(progress.explored[name])
        explored[name].add(each.layer.flat())
        changes += kept.afresh(each.values)
        changes += () if each.layer.bias is None else kept.afresh(each.layer.bias)
        changes.append(each.note_reset)
    return [*changes, partial(progress.explored.update, explored)]


def say_afresh(layers: Sequence[EvolvedLayer]) -> None:
    """Warn that the optimizer state of these layers starts afresh."""
    if layers:
        warn(
            f"The topologies of {', '.join(repr(each.name) for each in layers)} are not those that their optimizer "
            "state belongs to: it starts afresh. To resume training, load model and optimizer from the same checkpoint."
        )
