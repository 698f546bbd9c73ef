"""Pictures of results over density: accuracy, and speed."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING, cast

from sparsify._src.checks import check_density, shown
from sparsify._src.pictures.drawing import given_or_new, label, lines
from sparsify._src.pictures.percent import LEAST_SPAN, check_percent, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSE = "dense"
"""The name of results that are drawn as a level."""

TICKED = 12
"""Densities that have a tick each, at most."""


def accuracy(results: Mapping[str, Mapping[float, Sequence[float]]], axes: "Axes | None" = None) -> "Axes":
    """Draw accuracy over density: the mean of the seeds, and their standard deviation as bars.

    "dense" is a level. The axis of accuracies is never shorter than 5 points and ends at 100 at most: a difference of a
    tenth of a point looks like one.

    Args:
        results: name -> density -> accuracies in percent, one for each seed.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: a density is outside (0, 1], or accuracies are not in percent.
    Example:
        >>> from sparsify import plot
        >>> axes = plot.accuracy({"SET": {0.01: [95.1, 95.3], 0.1: [98.0, 98.2]}, "dense": {1: [98.3, 98.1]}})
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['dense: 98.20 %', 'SET']
    """
    check_percent("results", {f"{name}, {key}": each for name, runs in results.items() for key, each in runs.items()})
    for runs in results.values():
        for density in runs:
            check_density(density)
    sparse = [name for name in results if name != DENSE]
    ends: list[float] = []
    axes = given_or_new(axes, (7, 4.5))
    if DENSE in results:
        level, spread = _summary([each for runs in results[DENSE].values() for each in runs])
        axes.axhline(level, color="black", linewidth=1, label=f"{DENSE}: {level:.2f} %")
        axes.axhspan(level - spread, level + spread, color="black", alpha=0.1, linewidth=0)
        ends += [level - spread, level + spread]
    for name, look in zip(sparse, lines(len(sparse)), strict=True):
        densities = sorted(results[name])
        found = [_summary(results[name][density]) for density in densities]
        middle, spreads = [each for each, _ in found], [each for _, each in found]
        axes.errorbar(densities, middle, yerr=spreads if any(spreads) else None, capsize=3, label=name, **look)
        ends += [each + sign * spread for each, spread in found for sign in (-1, 1)]
    axes.set_ylim(span(min(ends), max(ends), LEAST_SPAN))
    label(axes, "accuracy over density", "density", "accuracy (%)")
    _density_axis(axes, {density for name in sparse for density in results[name]})
    seeds = sorted({len(each) for runs in results.values() for each in runs.values()})
    words = "mean ± standard deviation" if seeds[-1] > 1 else None
    axes.legend(loc="lower right", frameon=False, title=words, title_fontsize="small")
    return axes


def speed(results: Mapping[float, float] | Mapping[str, Mapping[float, float]], axes: "Axes | None" = None) -> "Axes":
    """Draw how many times faster than dense sparse is, over density, and where the two are as fast.

    Args:
        results: density -> dense time / sparse time, or name -> such a mapping.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: results are empty, a density is outside (0, 1], or a factor not above 0.
    Example:
        >>> from sparsify import plot
        >>> axes = plot.speed({0.1: 4.0, 0.5: 0.8})
        >>> axes.get_legend().get_texts()[0].get_text()
        'as fast as dense at 0.4'
    """
    curves = _curves(results)
    axes = given_or_new(axes, (7, 4.5))
    axes.axhline(1, color="black", linewidth=1)
    for (name, factors), look in zip(curves.items(), lines(len(curves)), strict=True):
        points = sorted(factors.items())
        crossing = _crossing(points)
        words = [name] * bool(name) + ([f"as fast as dense at {crossing:.2g}"] if crossing else [])
        axes.plot(*zip(*points, strict=True), label=": ".join(words) or "_", markersize=5, **look)
        if crossing:
            axes.plot(crossing, 1, marker="X", markersize=11, color=look["color"], linestyle="none")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    label(axes, "speed over density", "density", "times faster than dense")
    steps = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
    ticks = [tick for tick in steps if min(low, 0.5) <= tick <= max(high, 2)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _density_axis(axes, {density for factors in curves.values() for density in factors})
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small")
    return axes


def _curves(results: object) -> Mapping[str, Mapping[float, float]]:
    """Results of `speed` as name -> density -> factor, checked; the name is "" where none is given."""
    if not isinstance(results, Mapping) or not results:
        raise ValueError(f"results must map densities to factors, or names to such mappings, got {shown(results)}.")
    is_nested = all(isinstance(factors, Mapping) for factors in results.values())
    curves = cast("Mapping[str, Mapping[float, float]]", results if is_nested else {"": results})
    for name, factors in curves.items():
        if not factors:
            raise ValueError(f"results must hold a factor for each name, got none of {name!r}.")
        for density, factor in factors.items():
            check_density(density)
            if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
                raise ValueError(f"results must be dense time / sparse time, above 0, got {shown(factor)}.")
    return curves


def _crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """The density from which on dense is faster, on the straight line of a picture with two log axes; None if none."""
    for (density, factor), (next_density, next_factor) in pairwise(points):
        if factor >= 1 > next_factor:
            part = math.log(factor) / (math.log(factor) - math.log(next_factor))
            return float(density * (next_density / density) ** part)
    return None


def _summary(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 of one."""
    return mean(accuracies), stdev(accuracies) if len(accuracies) > 1 else 0.0


def _density_axis(axes: "Axes", densities: set[float]) -> None:
    """A log axis with a tick at each density, where they are few."""
    axes.set_xscale("log")
    if not densities:
        return
    axes.set_xlim(min(densities) / 1.25, max(densities) * 1.25)
    if len(densities) <= TICKED:
        ticks = sorted(densities)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
