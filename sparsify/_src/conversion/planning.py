"""`plan` and `summary`: what `sparsify` would do, and what a model is now, as tables."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from sparsify._src.checks import check_count
from sparsify._src.conversion import examples, losing, starts
from sparsify._src.conversion.calls import Seen
from sparsify._src.conversion.decided import Decision
from sparsify._src.conversion.decision import check_dense, decide, decide_skipping
from sparsify._src.conversion.densities import Density
from sparsify._src.conversion.distributions import Distribution, erdos_renyi
from sparsify._src.conversion.eligibility import Kind
from sparsify._src.conversion.globs import listed
from sparsify._src.conversion.inventory import report
from sparsify._src.conversion.linear_maps import DEFAULT, KINDS, Kinds, checked_kinds, find
from sparsify._src.conversion.measured import measured
from sparsify._src.conversion.report import Report
from sparsify._src.conversion.speed import BATCH, USUAL, Use
from sparsify._src.conversion.starts import Start
from sparsify._src.conversion.training_bytes import TrainingBytes
from sparsify._src.distributed import Ranks
from sparsify._src.evolution import SET, Evolution
from sparsify._src.evolution.algorithms import check_evolution
from sparsify._src.layers.map import SparseMap
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
    batch: int | None = None,
    training: bool = True,
    measure: bool = False,
    example: Any = None,
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip, kinds, start: as for `sparsify`.
        optimizer: one or several, as for `sparsify`; the table then tells bytes in training too, with the gradient and
            what the optimizer keeps. None takes every trainable layer as held by one.
        evolution: as for `sparsify`; one that prunes takes layers that are sparse already further down, and the table
            shows what they have in the end.
        batch: rows of input that a layer gets in a forward pass (samples, or tokens of all samples), for which speeds
            of linear layers are told, 128 where not given; `skip="losing"` judges at 128, as `sparsify` does.
        training: whether speeds are told of forward and backward; False tells of forward alone, under no_grad.
        measure: whether to measure this machine, for two or three seconds, and each layer that would be sparse, for a
            tenth of a second or a few runs, dense and sparse (layers beyond 2**25 weights not, convolutions with an
            example alone, and of those whose runs would take seconds fewer rows or images). What is found is kept
            on disk, in `$SPARSIFY_CACHE` or the user's folder for caches, for this processor, number of threads,
            release of torch and compiled library: later plans, `summary` and `skip="losing"` find it there, and it is
            not measured again. Otherwise speeds are those of a machine like this one; the last line says which.
        example: an input of the model's: a tensor, a tuple of positional arguments or a dict of keyword arguments, as
            the model is called with. It is run on it once, without gradients and as it is, in training or in eval mode;
            nothing stays of that. The table then tells multiply-adds of that forward pass, of all samples, and speeds
            at the sizes that each layer has there, of convolutions too. `skip="losing"` judges by them, convolutions
            too, and the table says what to give to `sparsify` as `skip`, which has no example. A model on the meta
            device is run there, where nothing is computed.
    Returns:
        a Report; `print` it for a table. Below it stands what to give as `skip`, so that no layer loses.
    Raises:
        ValueError, TypeError: as `sparsify`; the example is nothing that the model can be called with.
    Example:
        >>> lenet = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> report = plan(lenet, 0.1)
        >>> [(layer.name, layer.nnz) for layer in report.sparse]
        [('0', 18714), ('2', 6906)]
        >>> report.dense[0].reason
        'its density is 1'
        >>> report = plan(lenet, 0.1, example=torch.randn(128, 784))
        >>> report.layers[0].multiply_adds, report.layers[0].dense_multiply_adds
        (2395392, 30105600)
    """
    starts.check(start)
    check_evolution(evolution)
    use = _use(batch, training, example)
    if losing.is_asked(skip) and not use.is_usual and example is None:
        raise ValueError(
            f'skip must name layers where batch is not {BATCH} or training is False, got "losing" and '
            f"batch={use.batch}, training={training}: sparsify judges by training at batch {BATCH}. "
            "plan(...) without it prints the list to paste."
        )
    skip = skip if losing.is_asked(skip) else listed("skip", skip)  # what can be read once is read
    optimizers = None if optimizer is None else holders.listed(optimizer)
    held = TrainingBytes(unwrapped(optimizers)) if optimizers else None
    kinds = checked_kinds(kinds)
    seen = None
    deciding = partial(decide, model, density, optimizers, evolution, distribution, skip, start, kinds)
    skipping = partial(decide_skipping, model, density, optimizers, evolution, distribution, start, kinds)
    if example is not None:
        skipping(() if losing.is_asked(skip) else skip)  # what is wrong with other arguments is told first
        seen = examples.seen(model, example)
        deciding = partial(deciding, use=use, seen=seen)
    if measure:
        decision, trouble = measured(deciding, use, seen, partial(skipping, ()) if losing.is_asked(skip) else None)
    else:
        decision, trouble = deciding(), ""
    goes_on = density is None and starts.is_by_density(start)
    if not (decision.first or decision.pruned or decision.has_full or goes_on):
        check_dense(model)
    found = _with_notes(report_of(model, decision, use, held, seen), held, trouble)
    if isinstance(start, Mapping):
        return found
    if not losing.is_asked(skip):
        return _with_skip(found, skipping, decision, skip, use, seen)
    lost = [name for name in decision.maps if (why := decision.reasons.get(name)) and why.kind is Kind.LOSING]
    return _to_paste(found, lost, ()) if lost and seen is not None else found


def report_of(
    model: nn.Module,
    decision: Decision,
    use: Use = USUAL,
    training: TrainingBytes | None = None,
    seen: Seen | None = None,
) -> Report:
    """The table of what is decided for `model`.

    Args:
        seen: how an example calls each layer.
    """
    reasons = {name: reason.words for name, reason in decision.reasons.items()}
    told: dict[str, Any] = {"sharing": decision.sharing, "use": use, "training": training, "seen": seen}
    return report(model, decision.maps, reasons.get, decision.targets, **told)


def summary(
    model: nn.Module,
    optimizer: Any = None,
    *,
    batch: int | None = None,
    training: bool = True,
    example: Any = None,
) -> Report:
    """Tell what `model` is now: each layer's shape, density, connections, bytes and dead units (in the table: units
    without inputs + units without outputs).

    Args:
        optimizer: one or several that train it; the table then tells bytes in training too, with the gradient and what
            the optimizer keeps now: before its first step nothing, as a rule.
        batch, training: for what speeds are told, as in `plan`.
        example: an input of the model's, as in `plan`: the table then tells multiply-adds of a forward pass of it, and
            speeds at the sizes that each layer has there, of convolutions too.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: an argument is out of range or of another kind; the example is nothing that the model
            can be called with.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(20, 10)), None, 0.3)
        >>> summary(model).sparse[0].nnz
        60
        >>> summary(model, example=torch.randn(2, 7, 20)).sparse[0].multiply_adds
        840
    """
    use = _use(batch, training, example)
    seen = None if example is None else examples.seen(model, example)
    maps = find(model, KINDS)
    kinds = {name: type(linear_map.owner).__name__ for name, linear_map in maps.items()}
    optimizers = holders.listed(optimizer)
    held = TrainingBytes(unwrapped(optimizers), as_it_is=True) if optimizers else None
    found = report(model, maps, lambda name: f"it is an ordinary {kinds[name]}", {}, use=use, training=held, seen=seen)
    remarks = [module.remarks for module in model.modules() if isinstance(module, SparseMap) and module.remarks]
    unfinished = tuple(dict.fromkeys(each.unfinished for each in remarks if each.unfinished))
    found = replace(found, notes=(*found.notes, *unfinished))
    return _with_notes(found, held)


def _use(batch: int | None, training: bool, example: object) -> Use:
    """For what speeds are told.

    Raises:
        ValueError, TypeError: `batch` is no number of rows, or there is an example; `training` is neither True nor
            False; the example is none.
    """
    if batch is not None:
        check_count("batch", batch, 1)
    if not isinstance(training, bool):
        raise TypeError(f"training must be True or False, got {training!r}. What trains is given as optimizer=.")
    if example is not None:
        examples.arguments(example)
        if batch is not None:
            raise ValueError(f"batch must not be given with an example, which says it for each layer, got {batch}.")
    return Use(BATCH if batch is None else batch, training)


def _with_skip(
    found: Report,
    skipping: Callable[[list[str]], Decision],
    decision: Decision,
    skip: Iterable[str],
    use: Use,
    seen: Seen | None,
) -> Report:
    """The report, saying what to give as `skip`, so that no layer loses.

    Args:
        skipping: decides, given another `skip`.
        decision: what was decided with this one.
        use, seen: for what speeds are told, and how an example calls each layer.
    """
    try:
        left, lose = losing.without_losing(skipping, decision, skip, use, seen)
    except Exception as error:  # also what a distribution of the user's may raise without some of the layers
        return replace(found, notes=(f"without the layers that lose sparsify would raise: {error}", *found.notes))
    if not lose:
        return found
    if left is None:
        note = "each of these sparse layers is expected to be slower than dense: wider layers or a lower density gain"
        return replace(found, notes=(note, *found.notes))
    by_itself = use.is_usual and seen is None and not skip and Ranks().group is None
    return _to_paste(found, lose, skip, f', or skip="{losing.LOSING}"' if by_itself else "")


def _to_paste(found: Report, lose: Iterable[str], skip: Iterable[str], more: str = "") -> Report:
    """The report, saying that with these skipped too no layer is slower than dense."""
    lose = list(lose)
    note = f"so that no layer is slower than dense: {losing.written(lose, skip)}{more}"
    return replace(found, skip=(*skip, *losing.escaped(lose)), notes=(note, *found.notes))


def _with_notes(found: Report, training: TrainingBytes | None, trouble: str = "") -> Report:
    """The report, saying of what bytes and multiply-adds are not known, and why nothing was measured."""
    notes = [trouble] if trouble else []
    if training is not None and training.unknown:
        kinds = ", ".join(sorted(training.unknown))
        notes.append(f"bytes in training are not known: what {kinds} keeps could not be found out")
    if found.batch is None and (unknown := [x for x in found.layers if x.multiply_adds is None]):
        few = ", ".join(f"{x.name or '(model)'} ({x.kind})" for x in unknown[:3])
        more = ", ..." if len(unknown) > 3 else ""
        notes.append(f"multiply-adds are without those of {few}{more}: what it computes is not known")
    return replace(found, notes=(*found.notes, *notes))
