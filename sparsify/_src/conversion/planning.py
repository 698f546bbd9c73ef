"""`plan` and `summary`: what `sparsify` would do, and what a model is now, as tables."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from sparsify._src.checks import check_count
from sparsify._src.conversion import losing, speed, starts
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.decision import check_dense, decide, decide_skipping
from sparsify._src.conversion.densities import Density
from sparsify._src.conversion.distributions import Distribution, erdos_renyi
from sparsify._src.conversion.globs import listed
from sparsify._src.conversion.inventory import report
from sparsify._src.conversion.linear_maps import DEFAULT, KINDS, Kinds, checked_kinds, find
from sparsify._src.conversion.measuring import Unsteady
from sparsify._src.conversion.report import Report
from sparsify._src.conversion.speed import BATCH, USUAL, Use
from sparsify._src.conversion.starts import Start
from sparsify._src.conversion.training_bytes import TrainingBytes
from sparsify._src.distributed import Ranks
from sparsify._src.evolution import SET, Evolution
from sparsify._src.evolution.algorithms import check_evolution
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Shape
from sparsify._src.training import holders
from sparsify._src.training.arguments import unwrapped


def plan(
    model: nn.Module,
    density: Density | None = None,
    *,
    optimizer: Any = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    kinds: Kinds | type[nn.Module] = DEFAULT,
    start: Start = "random",
    evolution: Evolution = SET(),
    batch: int = BATCH,
    training: bool = True,
    measure: bool = False,
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip, kinds, start: as for `sparsify`.
        optimizer: one or several, as for `sparsify`; the table then tells bytes in training too, with the gradient and
            what the optimizer keeps. None takes every trainable layer as held by one.
        evolution: as for `sparsify`; one that prunes takes layers that are sparse already further down, and the table
            shows what they have in the end.
        batch: rows of input that a layer gets in a forward pass (samples, or tokens of all samples), for which speeds
            are told; `skip="losing"` judges at 128, as `sparsify` does.
        training: whether speeds are told of forward and backward; False tells of forward alone, under no_grad.
        measure: whether to measure this machine, for two or three seconds, and each layer that would be sparse, for a
            tenth of a second or a few runs, dense and sparse (layers beyond 2**25 weights not). What is found is kept
            on disk, in `$SPARSIFY_CACHE` or the user's folder for caches, for this processor, number of threads,
            release of torch and compiled library: later plans, `summary` and `skip="losing"` find it there, and it is
            not measured again. Otherwise speeds are those of a machine like this one; the last line says which.
    Returns:
        a Report; `print` it for a table. Below it stands what to give as `skip`, so that no layer loses.
    Raises:
        ValueError, TypeError: as `sparsify`.
    Example:
        >>> lenet = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> report = plan(lenet, 0.1)
        >>> [(layer.name, layer.nnz) for layer in report.sparse]
        [('0', 18714), ('2', 6906)]
        >>> report.dense[0].reason
        'its density is 1'
    """
    starts.check(start)
    check_evolution(evolution)
    use = _use(batch, training)
    if losing.is_asked(skip) and not use.is_usual:
        raise ValueError(
            f'skip must name layers where batch is not {BATCH} or training is False, got "losing" and batch={batch}, '
            f"training={training}: sparsify judges by training at batch {BATCH}. plan(...) without it prints the list "
            "to paste."
        )
    skip = skip if losing.is_asked(skip) else listed("skip", skip)  # what can be read once is read
    optimizers = None if optimizer is None else holders.listed(optimizer)
    held = TrainingBytes(unwrapped(optimizers)) if optimizers else None
    kinds = checked_kinds(kinds)
    deciding = partial(decide, model, density, optimizers, evolution, distribution, skip, start, kinds)
    decision, trouble = _measured(deciding, use, losing.is_asked(skip)) if measure else (deciding(), "")
    goes_on = density is None and starts.is_by_density(start)
    if not (decision.first or decision.pruned or decision.has_full or goes_on):
        check_dense(model)
    found = _with_notes(report_of(model, decision, use, held), held, trouble)
    if isinstance(start, Mapping) or losing.is_asked(skip):
        return found
    skipping = partial(decide_skipping, model, density, optimizers, evolution, distribution, start, kinds)
    return _with_skip(found, skipping, decision, skip)


def report_of(model: nn.Module, decision: Decision, use: Use = USUAL, training: TrainingBytes | None = None) -> Report:
    """The table of what is decided for `model`."""
    reasons = {name: reason.words for name, reason in decision.reasons.items()}
    sharing = decision.sharing
    return report(model, decision.maps, reasons.get, decision.targets, sharing=sharing, use=use, training=training)


def summary(model: nn.Module, optimizer: Any = None, *, batch: int = BATCH, training: bool = True) -> Report:
    """Tell what `model` is now: each layer's shape, density, connections, bytes and dead units (in the table: units
    without inputs + units without outputs).

    Args:
        optimizer: one or several that train it; the table then tells bytes in training too, with the gradient and what
            the optimizer keeps now: before its first step nothing, as a rule.
        batch, training: for what speeds are told, as in `plan`.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: an argument is out of range or of another kind.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(20, 10)), None, 0.3)
        >>> summary(model).sparse[0].nnz
        60
    """
    use = _use(batch, training)
    maps = find(model, KINDS)
    kinds = {name: type(linear_map.owner).__name__ for name, linear_map in maps.items()}
    optimizers = holders.listed(optimizer)
    held = TrainingBytes(unwrapped(optimizers), as_it_is=True) if optimizers else None
    found = report(model, maps, lambda name: f"it is an ordinary {kinds[name]}", {}, use=use, training=held)
    remarks = [module.remarks for module in model.modules() if isinstance(module, SparseMap) and module.remarks]
    unfinished = tuple(dict.fromkeys(each.unfinished for each in remarks if each.unfinished))
    found = replace(found, notes=(*found.notes, *unfinished))
    return _with_notes(found, held)


def _use(batch: int, training: bool) -> Use:
    """For what speeds are told.

    Raises:
        ValueError, TypeError: `batch` is no number of rows, or `training` neither True nor False.
    """
    check_count("batch", batch, 1)
    if not isinstance(training, bool):
        raise TypeError(f"training must be True or False, got {training!r}. What trains is given as optimizer=.")
    return Use(batch, training)


def _measured(deciding: Callable[[], Decision], use: Use, again: bool) -> tuple[Decision, str]:
    """Decide, and measure the layers that would be sparse.

    Args:
        again: whether what is decided depends on what was measured. Then decide anew until all of it was.
    Returns:
        the decision, and what went wrong.
    """
    try:
        trouble, before = speed.measure(), None
        while True:
            decision = deciding()
            layers = _to_measure(decision)
            if layers == before:
                break
            trouble, before = speed.measure(layers, use) or trouble, layers
            if not again:
                break
    except Unsteady as error:
        return deciding(), f"speed: not measured here, because something else used the processor ({error})"
    return decision, trouble and f"speed: what was measured is lost with this process: {trouble}"


def _to_measure(decision: Decision) -> list[tuple[Shape, int]]:
    """Shape and connections of the layers on a CPU that would be sparse, or are."""
    first = {name: decision.maps[name] for name in decision.first}
    linear = {name: x for name, x in first.items() if x.kind is nn.Linear}
    shapes = {name: x.shape for name, x in linear.items() if speed.is_known(x.weight_now.device)}
    existing = {name: x for name, x in decision.existing.items() if x.window is None}
    shapes |= {name: x.shape for name, x in existing.items() if speed.is_known(x.values.device)}
    return [(shape, decision.targets[name]) for name, shape in shapes.items()]


def _with_skip(
    found: Report, skipping: Callable[[list[str]], Decision], decision: Decision, skip: Iterable[str]
) -> Report:
    """The report, saying what to give as `skip`, so that no layer loses.

    Args:
        skipping: decides, given another `skip`.
        decision: what was decided with this one.
    """
    use = Use(found.batch, found.training)
    try:
        left, lose = losing.without_losing(skipping, decision, skip, use)
    except Exception as error:  # also what a distribution of the user's may raise without some of the layers
        return replace(found, notes=(f"without the layers that lose sparsify would raise: {error}", *found.notes))
    if not lose:
        return found
    if left is None:
        note = "each of these sparse layers is expected to be slower than dense: wider layers or a lower density gain"
        return replace(found, notes=(note, *found.notes))
    note = f"so that no layer is slower than dense: {losing.written(lose, skip)}"
    note += f', or skip="{losing.LOSING}"' * (use.is_usual and not skip and Ranks().group is None)
    return replace(found, skip=(*skip, *losing.escaped(lose)), notes=(note, *found.notes))


def _with_notes(found: Report, training: TrainingBytes | None, trouble: str = "") -> Report:
    """The report, saying of which optimizers the bytes are not known, and why nothing was measured."""
    if trouble:
        found = replace(found, notes=(*found.notes, trouble))
    if training is None or not training.unknown:
        return found
    kinds = ", ".join(sorted(training.unknown))
    note = f"bytes in training are not known: what {kinds} keeps could not be found out"
    return replace(found, notes=(*found.notes, note))
