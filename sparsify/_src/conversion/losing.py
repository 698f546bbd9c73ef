"""`skip="losing"`: leaves dense what is expected to be slower sparse than dense, and names it."""

import glob
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from sparsify._src.conversion import speed, work
from sparsify._src.conversion.calls import Seen
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.eligibility import Kind, Reason
from sparsify._src.conversion.globs import listed
from sparsify._src.distributed import Ranks

LOSING = "losing"
"""What `skip` is then; a layer of this name is named by skip=["losing"]."""


def is_asked(skip: object) -> bool:
    """Whether `skip` is the word, and not a list of globs."""
    return isinstance(skip, str) and skip == LOSING


def without_losing(
    ask: Callable[[list[str]], Decision],
    decision: Decision,
    skip: Iterable[str],
    use: speed.Use = speed.USUAL,
    seen: Seen | None = None,
) -> tuple[Decision | None, dict[str, float]]:
    """Leave dense what is slower than dense, share the density anew, and so on until nothing loses.

    Args:
        ask: decides, given `skip`.
        decision: what was decided with `skip`.
        use: for what speeds are told.
        seen: how an example calls each layer; without one linear layers alone are judged.
    Returns:
        what is decided in the end, None where nothing would be sparse; and the layers left dense -> how many times
        faster than dense each would have been.
    """
    left_out: dict[str, float] = {}
    while slow := _losing(decision, use, seen):
        found = left_out | slow
        left_out = {name: found[name] for name in decision.maps if name in found}
        if not (decision.first.keys() - slow.keys() or decision.has_full or decision.pruned):
            return None, left_out
        decision = ask([*listed("skip", skip), *escaped(left_out)])
    is_left = decision.first or decision.pruned or not left_out
    return decision if is_left else None, left_out


def escaped(names: Iterable[str]) -> list[str]:
    """The globs that name these layers and no others."""
    return [glob.escape(name) for name in names]


def checked(decision: Decision | None, left_out: Mapping[str, float]) -> Decision:
    """Return the decision that `without_losing` gave, with the reason of what is left dense.

    Raises:
        ValueError: nothing would be sparse, or not every process would find the same layers.
    """
    if decision is None:
        found = ", ".join(f"{name!r} {faster:.2f} x" for name, faster in left_out.items())
        raise ValueError(
            'skip must leave a layer that can be sparse, got "losing" where each is expected to be slower than dense: '
            f"{found}. Wider layers or a lower density gain; to save memory all the same, pass a list, or none."
        )
    for name in decision.first:
        device = decision.maps[name].weight_now.device
        if not speed.is_known(device):
            raise ValueError(
                f'skip must name layers that are on {device.type}, got "losing" in layer {name!r}: how fast it will be '
                "is known for CPUs only. Pass a list of names."
            )
    if Ranks().group is not None:
        raise ValueError(
            'skip must name layers in distributed training, got "losing": which lose depends on the machine, and all '
            f"ranks must have the same sparse layers. Pass one list on every rank: on this one {written(left_out)}."
        )
    words = "it would be slower than dense ({:.2f} x), and skip is 'losing'"
    slow = {name: Reason(words.format(faster), Kind.LOSING) for name, faster in left_out.items()}
    return decision._replace(reasons=decision.reasons | slow)


def written(left_out: Iterable[str], skip: Iterable[str] = ()) -> str:
    """The argument that leaves these layers dense, and what `skip` names, as one would type it."""
    return f"skip={[*listed('skip', skip), *escaped(left_out)]!r}"


def _losing(decision: Decision, use: speed.Use, seen: Seen | None) -> dict[str, float]:
    """The layers that would become sparse, and slower than dense -> how many times faster they would be."""
    found: dict[str, float] = {}
    for name in decision.first:
        x, nnz = decision.maps[name], decision.targets[name]
        faster = work.speed_up(name, x.shape, nnz, x.weight_now.device, x.kind is nn.Linear, use, seen)
        if faster is not None and faster < 1:
            found[name] = faster
    return found
