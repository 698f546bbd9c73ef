"""Pictures of a training: its loss and its accuracy, with the evolutions marked."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sparsify._src.checks import check_count, shown
from sparsify._src.pictures.drawing import given_or_new, label, lines, mark_evolutions, marked, whole_numbers
from sparsify._src.pictures.percent import LEAST_SPAN, check_percent, span
from sparsify._src.pictures.records import checked_records
from sparsify._src.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOWS = 50
"""The running mean of losses takes this part of the training at a time."""


def loss(
    losses: Sequence[float] | Tensor, history: Sequence[Record] | None = None, axes: "Axes | None" = None
) -> "Axes":
    """Draw the loss of each step, with a mark where each evolution came.

    The line is the mean of the last steps, a fiftieth of the training, as the legend says; the faint one behind it is
    the loss itself. The axis begins at zero, and leaves out the first fiftieth where that is higher than the rest.

    Args:
        losses: of each optimizer step, from the first.
        history: `optimizer.history`; None where nothing evolved.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: losses are no finite numbers, or history is no list of records, empty, or goes on after
            the losses end.
    Example:
        >>> from sparsify import plot
        >>> axes = plot.loss([2.3, 1.9, 1.2, 0.8])
        >>> axes.get_lines()[0].get_ydata().tolist()
        [2.3, 1.9, 1.2, 0.8]
    """
    raw = np.array([each.item() if isinstance(each, Tensor) else float(each) for each in losses])
    if not len(raw) or not np.isfinite(raw).all():
        raise ValueError(f"losses must be finite numbers, one for each step, got {shown(losses)}.")
    marks = [] if history is None else [record.step for record in checked_records(history)]
    if marks and marks[-1] > len(raw):
        raise ValueError(
            f"losses must be of all steps up to the last evolution, after step {marks[-1]}, got {len(raw)}. Pass the "
            "loss of every step, and the history of the same training."
        )
    window = max(1, len(raw) // WINDOWS)
    sums = np.concatenate([[0.0], np.cumsum(raw)])
    ends = np.arange(1, len(raw) + 1)
    begins = np.maximum(0, ends - window)
    axes = given_or_new(axes, (7, 4.2))
    axes.plot(ends, raw, color="0.75", linewidth=0.6, label="of each step" if window > 1 else None)
    if window > 1:
        means = (sums[ends] - sums[begins]) / (ends - begins)
        axes.plot(ends, means, color="black", linewidth=1.5, label=f"mean of the last {window} steps")
    if marks:
        mark_evolutions(axes, marks)
    label(axes, "loss", "step", "loss")
    late = raw[window:] if len(raw) > window else raw
    axes.set_ylim(min(0.0, 1.1 * late.min()), 1.25 * late.max() if late.max() > 0 else None)
    whole_numbers(axes)
    if window > 1 or marks:
        axes.legend(loc="upper right", frameon=False, borderaxespad=1.2)
    return axes


def epochs(
    results: Mapping[str, Sequence[float]],
    history: Sequence[Record] | None = None,
    steps: int | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw the accuracy after each epoch, a line for each training, with a mark where each evolution came.

    The axis of accuracies leaves out the first tenth of the epochs where these are lower, and is never shorter than 5
    points: a difference of a tenth of a point looks like one.

    Args:
        results: what the legend says of a training -> its accuracies in percent, one for each epoch.
        history: `optimizer.history` of the one that evolves; None draws no marks.
        steps: optimizer steps of an epoch, which place the marks.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: accuracies are not in percent, or history is given without steps.
    Example:
        >>> from sparsify import plot
        >>> axes = plot.epochs({"dense": [91.0, 97.2], "SET": [90.2, 97.0]})
        >>> len(axes.get_lines())
        2
    """
    curves = {name: [float(each) for each in accuracies] for name, accuracies in results.items()}
    check_percent("results", curves)
    marks = [] if history is None else [record.step for record in checked_records(history)]
    if history is not None:
        check_count("steps", steps, 1)
    axes = given_or_new(axes, (7, 4.2))
    for (name, accuracies), look in zip(curves.items(), lines(len(curves)), strict=True):
        axes.plot(range(1, len(accuracies) + 1), accuracies, label=name, **look, **marked(len(accuracies)))
    late = [each for accuracies in curves.values() for each in accuracies[len(accuracies) // 10 :]]
    axes.set_ylim(span(min(late), max(max(each) for each in curves.values()), LEAST_SPAN))
    if marks:
        mark_evolutions(axes, [step / (steps or 1) for step in marks])
    label(axes, "accuracy after each epoch", "epoch", "accuracy (%)")
    whole_numbers(axes)
    axes.legend(loc="lower right", frameon=False)
    return axes
