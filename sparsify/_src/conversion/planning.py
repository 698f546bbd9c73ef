"""`plan` and `summary`: what `sparsify` would do, and what a model is now, as tables."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from sparsify._src.conversion import starts
from sparsify._src.conversion.decision import Decision, check_dense, decide
from sparsify._src.conversion.densities import Density
from sparsify._src.conversion.distributions import Distribution, erdos_renyi
from sparsify._src.conversion.linear_maps import find
from sparsify._src.conversion.report import Report, report
from sparsify._src.conversion.starts import Start
from sparsify._src.evolution import SET, Evolution
from sparsify._src.training import holders


def plan(
    model: nn.Module,
    density: Density | None = None,
    *,
    optimizer: Any = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
    start: Start = "random",
    evolution: Evolution = SET(),
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip, start: as for `sparsify`.
        optimizer: one or several, as for `sparsify`; None takes every trainable layer as held by one.
        evolution: as for `sparsify`; one that prunes takes layers that are sparse already further down, and the table
            shows what they have in the end.
    Returns:
        a Report; `print` it for a table.
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
    if not isinstance(evolution, Evolution):
        raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {evolution!r}.")
    optimizers = None if optimizer is None else holders.listed(optimizer)
    decision = decide(model, density, optimizers, evolution, distribution, skip, start)
    goes_on = density is None and starts.is_by_density(start)
    if not (decision.first or decision.pruned or decision.has_full or goes_on):
        check_dense(model)
    return report_of(model, decision)


def report_of(model: nn.Module, decision: Decision) -> Report:
    """The table of what is decided for `model`."""
    reasons = {name: reason.words for name, reason in decision.reasons.items()}
    return report(model, decision.maps, reasons.get, decision.targets)


def summary(model: nn.Module) -> Report:
    """Tell what `model` is now: each layer's shape, density, connections, bytes and dead units (in the table: units
    without inputs + units without outputs).

    Returns:
        a Report; `print` it for a table.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(20, 10)), None, 0.3)
        >>> summary(model).sparse[0].nnz
        60
    """
    maps = find(model)
    kinds = {name: type(linear_map.owner).__name__ for name, linear_map in maps.items()}
    return report(model, maps, lambda name: f"it is an ordinary {kinds[name]}", {})
