"""What all pictures share: matplotlib, imported when something is drawn; axes, lines that differ in grey, labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsify._src.checks import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

INSTALL = 'pip install "sparsify-torch[plot]"'
COLOURS = "viridis"
"""Of maps and lines: its lightness rises evenly, so that it reads in grey too."""

LIGHTEST = 0.85
"""The part of `COLOURS` that lines use: what comes after is too light on white."""

STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
MARKED = 12
"""Markers that a line has at most."""

IN_LEGEND = 10
"""Lines that a legend names at most; of more it names some, evenly chosen."""


def check_matplotlib() -> None:
    """Raise ModuleNotFoundError, which says how to get it, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"matplotlib must be installed where something is drawn, got: {error}. Install it: {INSTALL}",
            name=error.name,
        ) from error


def given_or_new(axes: "Axes | None", size: tuple[float, float]) -> "Axes":
    """The axes to draw into: those given, else new ones in a figure of `size` inches."""
    check_matplotlib()
    from matplotlib.axes import Axes

    if axes is None:
        from matplotlib import pyplot

        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(axes, Axes):
        raise TypeError(f"axes must be an Axes of matplotlib's, got {shown(axes)}. Of several panels pass one.")
    return axes


def lines(count: int) -> list[dict[str, Any]]:
    """How each of `count` lines is drawn: from dark to light, dashed and marked in turn."""
    from matplotlib import colormaps

    shades = colormaps[COLOURS](np.linspace(0, LIGHTEST, max(2, count)))
    return [
        {"color": shades[n], "linestyle": STYLES[n % len(STYLES)], "marker": MARKERS[n % len(MARKERS)]}
        for n in range(count)
    ]


def marked(points: int) -> dict[str, Any]:
    """Which of a line's points have a marker, and how large it is."""
    return {"markevery": -(-points // MARKED), "markersize": 4}


def named(names: Sequence[str]) -> list[str]:
    """What the legend says of each line; "_" keeps a line out of it where there are many."""
    every = -(-len(names) // IN_LEGEND)
    return [name if n % every == 0 else f"_{name}" for n, name in enumerate(names)]


def label(axes: "Axes", title: str, x: str, y: str) -> None:
    """Title and labels of a plot of lines, which gets a faint grid."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: "Axes") -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def mark_evolutions(axes: "Axes", places: Sequence[float]) -> None:
    """Short strokes at the upper edge, where evolutions came."""
    where = axes.get_xaxis_transform()
    kept = "evolution" if len(places) == 1 else f"{len(places)} evolutions"
    axes.vlines(places, 0.965, 1, colors="black", linewidth=0.8, transform=where, label=kept)


def image(axes: "Axes", numbers: np.ndarray, most: float | None, unit: str, **options: Any) -> "AxesImage":
    """A map of numbers from 0 up to `most`, with a bar that tells what its colours mean."""
    top = float(np.nanmax(numbers)) if most is None else float(most)
    drawn = axes.imshow(numbers, cmap=COLOURS, vmin=0, vmax=top or 1, interpolation="nearest", **options)
    beyond = "max" if np.nanmax(numbers) > top else "neither"
    axes.figure.colorbar(drawn, ax=axes, label=unit, extend=beyond)
    return drawn
