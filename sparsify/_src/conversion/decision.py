"""Decides for every linear map of a model: sparse with how many connections, or left dense and why.

Both `plan`, which reports it, and `sparsify`, which carries it out, ask `decide`; nothing is changed here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod

from torch import Tensor, nn

from sparsify._src.conversion import losing, starts
from sparsify._src.conversion.calls import Seen
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.densities import Density, at_most, check_kinds, first_connections, without_share
from sparsify._src.conversion.distributions import Distribution
from sparsify._src.conversion.eligibility import Kind, Reason, check_module, refuse_model, why_dense
from sparsify._src.conversion.globs import check_globs, listed, named
from sparsify._src.conversion.linear_maps import DEFAULT, KINDS, Kinds, LinearMap, aliases, find
from sparsify._src.conversion.refusals import why_nothing
from sparsify._src.conversion.speed import USUAL, Use
from sparsify._src.conversion.starts import SKIPPED, Start
from sparsify._src.evolution import Evolution
from sparsify._src.layers.map import SparseMap
from sparsify._src.training import holders
from sparsify._src.warning import warn

FULL = Reason("its density is 1", Kind.FULL)
DENSE_IN_START = Reason("it is dense in start")
WITHOUT_DENSITY = Reason("no density is given")
NOT_NAMED = Reason("no glob of density names it", Kind.NOT_NAMED)
SPARSE_ALREADY = Reason("it is sparse already, and model.load_state_dict(state_dict) takes over another topology")

WAYS = (
    'Without a density: start="nonzero" takes a pruned model as it is, start=other the topology of another sparse '
    "model, and start=state_dict all of a sparse checkpoint."
)
"""What an error about densities names."""

IS_SPARSE = (
    "To train it with a new optimizer, or by another algorithm: sparsify(model, optimizer, steps=...), without a "
    "density. To prune it further: trim(model, fraction, optimizer), or sparsify(model, optimizer, density, "
    "evolution=GMP(), steps=...). For other topologies of the same sizes: reset_parameters() of its layers."
)
"""What can be done with a model that is sparse already."""


def decide(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[object] | None,
    evolution: Evolution,
    distribution: Distribution,
    skip: Iterable[str],
    start: Start,
    kinds: Kinds = DEFAULT,
    use: Use = USUAL,
    seen: Seen | None = None,
) -> Decision:
    """Decide; the arguments are those of `sparsify`.

    Args:
        optimizers: that hold the parameters, none to serve the model without; None takes every trainable layer as held.
        use, seen: by what `skip="losing"` judges: for what speeds are told, and how an example calls each layer.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    skipping = partial(decide_skipping, model, density, optimizers, evolution, distribution, start, kinds)
    if not losing.is_asked(skip):
        return skipping(skip)
    if isinstance(start, Mapping):
        raise ValueError(starts.GIVEN_WITH_STATE_DICT)
    decision, left_out = losing.without_losing(skipping, skipping(()), (), use, seen)
    return losing.checked(decision, left_out)


def decide_skipping(
    model: nn.Module,
    density: Density | None,
    optimizers: Sequence[object] | None,
    evolution: Evolution,
    distribution: Distribution,
    start: Start,
    kinds: Kinds,
    skip: Iterable[str],
) -> Decision:
    """Decide, where `skip` names layers."""
    check_module(model)
    serves = optimizers is not None and not optimizers
    prunes = not serves and evolution.start_density is not None
    sparse = starts.existing(model, None)
    existing = {} if serves else starts.existing(model, None if optimizers is None else holders.parameters(*optimizers))
    check_kinds(density, distribution)
    skip = listed("skip", skip)
    if not starts.is_by_density(start):
        starts.check_density(start, density, prunes)
        if isinstance(start, Mapping) and skip:
            raise ValueError(starts.GIVEN_WITH_STATE_DICT)
    elif density is None:
        return _go_on(model, existing, prunes, bool(sparse))
    if not isinstance(start, str):  # it says itself which layers are sparse
        kinds = KINDS
    refuse_model(model, kinds)
    maps = find(model, kinds)
    check_globs("skip", skip, [*maps, *sparse])
    reasons = why_dense(model, maps, optimizers or None)
    skipped = set[str]().union(*(named(glob, [*maps, *sparse]) for glob in skip))
    for name in skipped & maps.keys():
        reasons.setdefault(name, SKIPPED)
    flat: dict[str, Tensor] = {}
    if not starts.is_by_density(start):
        known = reasons | dict.fromkeys(sparse, SPARSE_ALREADY)
        flat = starts.given_topologies(start, maps, known, aliases(model, kinds), bool(optimizers))
        reasons = {name: reason for name, reason in reasons.items() if name not in flat}
        for name in maps.keys() - flat.keys():
            if density is None or start != "nonzero":
                reasons.setdefault(name, FULL if start == "nonzero" else DENSE_IN_START)
    if density is None:
        targets = {name: layer.nnz for name, layer in existing.items()} | {n: len(x) for n, x in flat.items()}
        return Decision(maps, reasons, {**flat}, existing, set(), targets, set())
    pruned = {name: layer for name, layer in existing.items() if prunes and name not in skipped}
    counts = _share_out(density, maps, reasons, flat, pruned, distribution)
    full = {name for name, reason in reasons.items() if reason is FULL and name in counts}
    ends = {name: count for name, count in counts.items() if name in maps and name not in full}
    targets = {name: layer.nnz for name, layer in existing.items()}
    targets |= {name: count for name, count in counts.items() if name not in full}
    first: dict[str, int | Tensor] = {**ends}
    if flat or (existing and prunes):  # pruning begins with the model as it is: what is dense, with all its places
        first = {name: flat.get(name, maps[name].weight_now.numel()) for name in ends}
    elif prunes and evolution.start_density is not None:
        counted = {name: counts[name] for name in (*ends, *full)}
        shapes = {name: maps[name].weight_shape for name in counted}
        firsts = first_connections(counted, shapes, density, evolution.start_density, distribution)
        first = {name: firsts[name] for name in ends}
    sharing = set() if isinstance(density, Mapping) or callable(density) else set(counts)
    return Decision(maps, reasons, first, existing, set(pruned), targets, sharing)


def _share_out(
    density: Density,
    maps: Mapping[str, LinearMap],
    reasons: dict[str, Reason],
    flat: Mapping[str, Tensor],
    pruned: Mapping[str, SparseMap],
    distribution: Distribution,
) -> dict[str, int]:
    """Connections in the end of each layer that shares the density; `reasons` gets why others of these stay dense.

    Args:
        reasons: of the maps that do not share it.
        flat: connections that some of the others begin with.
        pruned: sparse layers that share it too.
    """
    most = {name: len(places) for name, places in flat.items()} | {name: layer.nnz for name, layer in pruned.items()}
    eligible = {name: linear_map.weight_shape for name, linear_map in maps.items() if name not in reasons}
    shapes = eligible | {name: layer.shape_by_taps for name, layer in pruned.items()}
    counts = at_most(most, density, shapes, distribution, [*maps, *pruned])
    alone = {name for name, count in counts.items() if count == 1 < prod(shapes[name])}
    if few := [name for name in without_share(density, shapes, distribution, [*maps, *pruned]) if name in alone]:
        warn(
            f"{len(few)} of {len(counts)} layers keep a single connection, because their share of the density rounds "
            f"to none: {', '.join(map(repr, few[:5]))}{', ...' if len(few) > 5 else ''}. density=epsilon(1) gives "
            "each layer about as many connections as it has units; skip leaves layers dense."
        )
    for name, shape in eligible.items():
        if name not in counts:
            reasons[name] = NOT_NAMED
        elif counts[name] == prod(shape):
            reasons[name] = FULL
    return counts


def check_something_changes(
    model: nn.Module,
    density: Density | None,
    decision: Decision,
    start: Start,
    kinds: Kinds,
    table: Callable[[], object],
) -> None:
    """Raise ValueError unless a layer becomes sparse or is pruned further, or another algorithm or optimizer comes.

    Args:
        table: gives one of what stays dense, and why.
    """
    if decision.first or (density is None and decision.existing and starts.is_by_density(start)):
        return
    if decision.pruned:
        if all(decision.targets[name] == decision.existing[name].nnz for name in decision.pruned):
            raise ValueError(
                f"density must be lower than that of the sparse layers, got {density}: nothing would be pruned."
            )
        return
    check_dense(model)
    if start == "nonzero" or not decision.has_full:
        raise ValueError(why_nothing(model, decision.reasons, start == "nonzero", table, kinds))


def check_dense(model: nn.Module) -> None:
    """Raise ValueError if `model`, in which nothing else can become sparse, is sparse already."""
    for name, module in model.named_modules():
        if isinstance(module, SparseMap):
            raise ValueError(f"model must be dense, got {type(module).__name__} in layer {name!r}. {IS_SPARSE}")


def _go_on(model: nn.Module, existing: dict[str, SparseMap], prunes: bool, is_sparse: bool) -> Decision:
    """Where no density is given: with the layers that are sparse already, by another algorithm or optimizer."""
    if not existing:
        ways = f"{WAYS} {IS_SPARSE}" if is_sparse else WAYS
        raise TypeError(f"density must be given, such as density=0.1 for a tenth of the weights. {ways}")
    if prunes:
        raise ValueError(starts.PRUNES_TO)
    maps = find(model)
    reasons = dict.fromkeys(maps, WITHOUT_DENSITY)
    return Decision(maps, reasons, {}, existing, set(), {name: layer.nnz for name, layer in existing.items()}, set())
