"""Warns of models that get averages of the trained one's values without following its topology.

A target network that was built by its constructor, and got its values parameter by parameter, is no copy that we know
of: when the topology evolves it keeps its own, and averages different connections from then on. We cannot know whether
that is so, but see it in its numbers; the user is told, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from sparsify._src.layers import copies, counting, registry
from sparsify._src.layers.checked import Checked
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.layers.samples import COUNT, Sample, at, holds_share, is_alike, spread
from sparsify._src.swap import LOCK
from sparsify._src.warning import warn


@dataclass
class _Stranger:
    """What is known of a layer that is neither trained by a wrapped optimizer nor a copy of one that is.

    sample: of its values when it was last looked at.
    checked: its topology then.
    gradients: how many had come to it.
    is_trained: whether some have come since.
    """

    sample: Sample
    checked: Checked | None
    gradients: int
    is_trained: bool = False
    has_warned: bool = False


_strangers: WeakKeyDictionary[SparseMatrix, _Stranger] = WeakKeyDictionary()


def look_around(layers: Mapping[str, SparseMatrix]) -> None:
    """Warn where a layer of another model gets averages of the values of one of `layers`, position by position.

    To be called before the first step and before an evolution.

    Args:
        layers: name -> layer that is trained.
    """
    trained, found = registry.trained(), set[str]()
    for other in registry.layers():
        if other not in trained and not copies.originals(other):
            alike = {name: layer for name, layer in layers.items() if _are_alike(layer, other)}
            if alike and other.is_whole():
                checked = other._checked
                try:
                    found |= _look_at(other, alike)
                except (IndexError, RuntimeError):
                    if other._checked is checked and not other.is_changing():
                        raise  # or another thread has evolved it meanwhile
    if found:
        names = ", ".join(repr(name) for name in layers if name in found)
        warn(
            f"Another model gets the values of {names}, or averages of them, parameter by parameter, and does not know "
            "of their connections: when the topology evolves it has others. Load model.state_dict() into it before "
            "averaging begins, make it with copy.deepcopy(model), or call sparsify.follow(average, model) once both "
            "have the same topology."
        )


def _look_at(other: SparseMatrix, alike: Mapping[str, SparseMatrix]) -> set[str]:
    """The names of those in `alike` whose values something has written to `other`."""
    values, before = other.values, None
    with LOCK:
        known = _strangers.get(other)
        if known is None or known.checked is not other._checked or known.sample.vector is not values:
            old, known = known, _Stranger(Sample.evenly(values), other._checked, other.gradients)
            if old is not None:
                known.gradients, known.is_trained, known.has_warned = old.gradients, old.is_trained, old.has_warned
            _strangers[other] = known
        elif known.sample.has_changed():
            before = known.sample.numbers.clone()
            known.sample.take()
        else:
            return set()
        known.is_trained |= other.gradients != known.gradients
    same = {name for name, layer in alike.items() if layer.digest == other.last_digest}
    counting.count_gradients(other)
    if known.is_trained or known.has_warned:
        return set()
    found = {name for name, layer in alike.items() if _holds(other, layer, known.sample, before, name in same)}
    known.has_warned = bool(found)
    return found


def _holds(other: SparseMatrix, layer: SparseMatrix, sample: Sample, before: Tensor | None, is_same: bool) -> bool:
    """Whether values of `layer` have been written to `other`, of which `sample` was taken now, and `before` earlier."""
    now, positions = sample.numbers, sample.positions
    theirs = at(layer.values, positions)
    if is_same:
        return before is not None and holds_share(now, before, theirs)
    # Models made alike and trained alike resemble one another, but not where their connections differ.
    differs = layer.flat() != other.flat().to(layer.values.device)
    chosen = differs[positions.to(differs.device)].to(now.device)
    if before is not None and holds_share(now[chosen], before[chosen], theirs.to(now.device)[chosen]):
        return True
    places = differs.nonzero().squeeze(1)
    places = places[spread(len(places), COUNT, places.device)]
    return is_alike(at(other.values, places), at(layer.values, places))


def _are_alike(layer: SparseMatrix, other: SparseMatrix) -> bool:
    mine, theirs = layer._parameters.get("values"), other._parameters.get("values")
    return layer.shape == other.shape and mine is not None and theirs is not None and mine.shape == theirs.shape
