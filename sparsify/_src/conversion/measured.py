"""Decides, and measures the layers that would be sparse: what `plan(..., measure=True)` does."""

from collections.abc import Callable

from torch import nn

from sparsify._src.conversion import speed, work
from sparsify._src.conversion.calls import Seen
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.measuring import Unsteady
from sparsify._src.conversion.places import Place
from sparsify._src.conversion.speed import Use


def measured(
    deciding: Callable[[], Decision],
    use: Use,
    seen: Seen | None = None,
    without_losing: Callable[[], Decision] | None = None,
) -> tuple[Decision, str]:
    """Decide, and measure the layers that would be sparse.

    Args:
        seen: how an example calls them; None for rows as `use` says.
        without_losing: `deciding` depends on what was measured, and this does not: it leaves no layer dense because of
            its speed. Then the layers of this are measured, and all of what is decided by them.
    Returns:
        the decision, and what went wrong.
    """
    try:
        trouble, before = speed.measure(), None
        if without_losing is not None:  # a first guess may be that all lose
            trouble = speed.measure(to_measure(without_losing(), use, seen)) or trouble
        while True:
            decision = deciding()
            layers = to_measure(decision, use, seen)
            if layers == before:
                break
            trouble, before = speed.measure(layers) or trouble, layers
            if without_losing is None:
                break
    except Unsteady as error:
        return deciding(), f"speed: not measured here, because something else used the processor ({error})"
    return decision, trouble and f"speed: what was measured is lost with this process: {trouble}"


def to_measure(decision: Decision, use: Use, seen: Seen | None = None) -> list[tuple[Place, int]]:
    """Where the layers on a CPU that would be sparse, or are, are called, and their connections."""
    found: list[tuple[Place, int]] = []
    first = {name: decision.maps[name] for name in decision.first}
    each = [(name, x.shape, x.kind is nn.Linear, x.weight_now.device) for name, x in first.items()]
    each += [(name, x.shape, x.window is None, x.values.device) for name, x in decision.existing.items()]
    for name, shape, is_linear, device in each:
        if speed.is_known(device):
            places = dict.fromkeys(work.places(name, shape, is_linear, use, seen))
            found += [(place, decision.targets[name]) for place in places]
    return found
