"""Pictures of evolutions, drawn from `optimizer.history`: degrees, explored places, turnover."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sparsify._src.pictures.drawing import given_or_new, label, lines, marked, named, whole_numbers
from sparsify._src.pictures.records import checked_records, layers_of, of_layer
from sparsify._src.training.record import LayerRecord, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def degrees(history: Sequence[Record], layer: str | None = None, axes: "Axes | None" = None) -> "Axes":
    """Draw how many connections the units of a layer have, evolution by evolution.

    Fan-out is of its input units, fan-in of its output units: of each the median, a band from the lower to the upper
    quartile, and thin lines for the least and the most.

    Args:
        history: `optimizer.history`.
        layer: its name in the history; None takes the first.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: history is no list of records, or empty, or has no such layer.
    Example:
        >>> from sparsify import plot
        >>> model = nn.Sequential(nn.Linear(20, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> plot.degrees(sgd.history).get_title()
        'layer 0: connections of its units'
    """
    records = checked_records(history)
    name = layers_of(records)[0] if layer is None else layer
    steps, found = of_layer(records, name)
    axes = given_or_new(axes, (7, 4.2))
    looks = (
        ("fan_out", "fan-out (of an input)", "black", "-", "o"),
        ("fan_in", "fan-in (of an output)", "0.5", "--", "s"),
    )
    for field, words, colour, style, marker in looks:
        least, lower, median, upper, most = zip(*(getattr(each, field) for each in found), strict=True)
        axes.fill_between(steps, lower, upper, color=colour, alpha=0.22, linewidth=0)
        for extreme in least, most:
            axes.plot(steps, extreme, color=colour, linestyle=style, linewidth=0.7)
        axes.plot(steps, median, color=colour, linestyle=style, marker=marker, label=words, **marked(len(steps)))
    label(axes, f"layer {name}: connections of its units", "step", "connections of a unit")
    whole_numbers(axes)
    _legend(axes, "median; band: quartiles; thin: least, most")
    return axes


def explored(history: Sequence[Record], axes: "Axes | None" = None) -> "Axes":
    """Draw the share of each layer's places that were ever connections, evolution by evolution.

    Args:
        history: `optimizer.history`.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: history is no list of records, or empty.
    Example:
        >>> from sparsify import plot
        >>> model = nn.Sequential(nn.Linear(20, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> plot.explored(sgd.history).get_ylabel()
        'places ever active (%)'
    """
    axes = _by_layer(checked_records(history), lambda record: record.explored, axes)
    label(axes, "explored by evolution", "step", "places ever active (%)")
    _legend(axes, "layer")
    _end_at_a_hundred(axes)
    return axes


def turnover(history: Sequence[Record], axes: "Axes | None" = None) -> "Axes":
    """Draw the share of each layer's connections that an evolution replaced, and of those it had grown, how many stay.

    Lines with markers are the turnover; thin lines without, in the same colour, are the connections grown at the
    evolution before that survived this one, where the record tells.

    Args:
        history: `optimizer.history`.
        axes: of matplotlib's; None makes new ones.
    Raises:
        TypeError, ValueError: history is no list of records, or empty.
    Example:
        >>> from sparsify import plot
        >>> model = nn.Sequential(nn.Linear(20, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> plot.turnover(sgd.history).get_ylabel()
        'connections (%)'
    """
    records = checked_records(history)
    axes = _by_layer(records, lambda record: record.turnover, axes)
    survival = False
    for line, name in zip(axes.get_lines(), layers_of(records), strict=True):
        steps, found = of_layer(records, name)
        told = [
            (step, 100 * each.survived) for step, each in zip(steps, found, strict=True) if each.survived is not None
        ]
        if told:
            survival = True
            axes.plot(*zip(*told, strict=True), color=line.get_color(), linestyle=line.get_linestyle(), linewidth=0.8)
    label(axes, "turnover at each evolution", "step", "connections (%)")
    _legend(axes, "layer; marked: replaced; thin: of those grown before, still there" if survival else "layer")
    _end_at_a_hundred(axes)
    return axes


def _by_layer(records: Sequence[Record], share: Callable[[LayerRecord], float], axes: "Axes | None") -> "Axes":
    """A line for each layer, in percent, from zero."""
    names = layers_of(records)
    axes = given_or_new(axes, (7, 4.2))
    for name, words, look in zip(names, named(names), lines(len(names)), strict=True):
        steps, found = of_layer(records, name)
        axes.plot(steps, [100 * share(each) for each in found], label=words, **look, **marked(len(steps)))
    whole_numbers(axes)
    return axes


def _legend(axes: "Axes", title: str) -> None:
    """The legend above the lines, whose axis begins at zero."""
    columns = 5
    count = len(axes.get_legend_handles_labels()[1])
    axes.set_ylim(0, axes.dataLim.ymax * (1.2 + 0.08 * -(-count // columns)))
    axes.legend(title=title, ncols=min(columns, count), frameon=False, loc="upper left", alignment="left")


def _end_at_a_hundred(axes: "Axes") -> None:
    """No ticks beyond 100 %, where the legend is."""
    end = min(100, axes.get_ylim()[1])
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= end])
