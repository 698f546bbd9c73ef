"""What happens to optimizer state where a topology was replaced under it, by loading, `trim` or `reset_parameters`."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

from sparsify._src.swap import Change
from sparsify._src.training.evolved_layers import NO_TOPOLOGY, EvolvedLayer
from sparsify._src.training.explored import Explored
from sparsify._src.training.last_grown import LastGrown
from sparsify._src.training.optimizer_state import Kept
from sparsify._src.training.progress import Progress
from sparsify._src.warning import warn


def stale(evolved: Mapping[str, EvolvedLayer]) -> list[EvolvedLayer]:
    """The layers whose topology was replaced under their optimizer state."""
    return [each for each in evolved.values() if each.is_stale]


def distrust_what_does_not_fit(evolved: Iterable[EvolvedLayer], kept: Kept) -> None:
    """Treat buffers of another length than the values as stale: they start afresh at the next step."""
    for each in evolved:
        if not kept.fits(each.values):
            each.topology = NO_TOPOLOGY


def prepare_afresh(stale: Sequence[EvolvedLayer], kept: Kept) -> list[Change]:
    """Prepare to start the optimizer state of these layers afresh: it belongs to other topologies."""
    afresh = chain.from_iterable(kept.prepare_afresh(each.values) for each in stale)
    return [*afresh, *(each.note_topology for each in stale)]


def prepare_reset(reset: Mapping[str, EvolvedLayer], kept: Kept, progress: Progress) -> list[Change]:
    """Prepare for layers that were reset: state of values and bias starts afresh, and their places are explored.

    What grew before is not there any more, even where a new connection stands in its place.
    """
    explored, changes = dict[str, Explored](), list[Change]()
    for name, each in reset.items():
        explored[name] = copy.copy(progress.explored[name])
        explored[name].add(each.layer.flat())
        changes += kept.prepare_afresh(each.values)
        changes += () if each.layer.bias is None else kept.prepare_afresh(each.layer.bias)
        changes.append(each.note_reset)
    nothing = {name: LastGrown.none() for name in reset}
    return [*changes, partial(progress.explored.update, explored), partial(progress.last_grown.update, nothing)]


@contextmanager
def saying_afresh(stale: Sequence[EvolvedLayer], kept: Kept) -> Iterator[None]:
    """After the block, in which the state of these layers starts afresh, warn of those that had some."""
    had_any = [repr(each.name) for each in stale if kept.has_any(each.values)]
    yield
    if had_any:
        warn(
            f"The topologies of {', '.join(had_any)} are not those that their optimizer state belongs to: it starts "
            "afresh. To resume training, load model and optimizer from the same checkpoint."
        )
