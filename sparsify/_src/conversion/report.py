"""`Report`: what a plan and a summary show, a row for each weight matrix, as a table or as plain data."""

import math
from dataclasses import dataclass
from typing import Any

from sparsify._src.conversion import speed
from sparsify._src.conversion.layer_report import LayerReport, together
from sparsify._src.conversion.table import amount, as_html, as_text

SHARED = "the sparse layers, and those whose density is 1"
"""What the row of a density that was shared out counts, where that is more than the sparse layers."""

WHOLE = "with the layers left dense"
"""What the row of the whole model counts beyond the one before."""


@dataclass(frozen=True)
class Report:
    """Every layer with a weight matrix, sparse or dense: `print` it for a table; a notebook shows one too.

    The last row is of the whole model. Where layers are left dense, the row before is of those that the density is of.

    layers: a row for each.
    again: elements, bytes and bytes in training of tied weights, which stand in several rows, and which the whole model
        must not count again.
    batch: rows of input that a layer sees at once, for which speeds are told; None where an example tells it of each.
    training: whether they are of forward and backward, or of forward alone, under no_grad.
    skip: what to give as `skip`, so that no layer is expected to be slower than dense: what was given, and the layers
        that lose. Empty where none loses, and where none would be left.
    notes: lines below the table.
    told: where the speeds come from; the last line, where there are any.

    Example:
        >>> report = plan(nn.Sequential(nn.Embedding(50, 400), nn.Linear(400, 300), nn.Linear(300, 400)), 0.1)
        >>> [layer.name for layer in report.sparse], [layer.reason for layer in report.dense]
        (['1', '2'], ['only linear layers and convolutions become sparse'])
        >>> [(total.name, round(total.density, 3)) for total in report.totals]
        [('sparse layers', 0.1), ('whole model', 0.169)]
        >>> [row["connections"] for row in report.rows()]
        [20000, 12000, 12000]
    """

    layers: tuple[LayerReport, ...]
    again: tuple[int, int, int] = (0, 0, 0)
    batch: int | None = speed.BATCH
    training: bool = True
    skip: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    told: str = ""

    @property
    def sparse(self) -> tuple[LayerReport, ...]:
        """The sparse layers."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def dense(self) -> tuple[LayerReport, ...]:
        """The layers left dense; each has its reason."""
        return tuple(layer for layer in self.layers if layer.reason is not None)

    @property
    def totals(self) -> tuple[LayerReport, ...]:
        """The last rows of the table. The whole model is the last one, and its `speed_up` that of all its linear layers
        together, with an example of its convolutions too, those left dense at their dense time; attention, norms, the
        optimizer's step are not counted. Multiply-adds are those of weights, too: not those of scores of attention.

        Where other layers are in the model, a first one is of those that share the density, else of the sparse ones.
        """
        sharing = tuple(layer for layer in self.layers if layer.shares)
        counted = sharing or self.sparse
        name = "sparse layers" if counted == self.sparse else "shared density"
        part = [together(name, counted)] if 0 < len(counted) < len(self.layers) else []
        return (*part, together("whole model", self.layers, self.again))

    @property
    def speed_up(self) -> float | None:
        """How many times faster all layers of the model that are timed are expected to be together; see `totals`."""
        return self.totals[-1].speed_up

    def rows(self) -> list[dict[str, Any]]:
        """Plain values, one dict a layer: for `pandas.DataFrame(report.rows())`, `csv.DictWriter` and `json`.

        Example:
            >>> [row] = plan(nn.Linear(400, 300), 0.1).rows()
            >>> row["layer"], row["shape"], row["places"], row["connections"], row["density"], row["sparse"]
            ('', '300 x 400', 120000, 12000, 0.1, True)
        """
        return [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": _shape(layer),
                "places": math.prod(layer.shape),
                "connections": layer.nnz,
                "density": layer.density,
                "sparse": layer.reason is None,
                "shares": layer.shares,
                "bytes": layer.bytes,
                "dense_bytes": layer.dense_bytes,
                "training_bytes": layer.training_bytes,
                "dense_training_bytes": layer.dense_training_bytes,
                "multiply_adds": layer.multiply_adds,
                "dense_multiply_adds": layer.dense_multiply_adds,
                "milliseconds": layer.milliseconds,
                "dense_milliseconds": layer.dense_milliseconds,
                "speed_up": layer.speed_up,
                "without_inputs": layer.without_inputs,
                "without_outputs": layer.without_outputs,
                "reason": layer.reason,
            }
            for layer in self.layers
        ]

    def __str__(self) -> str:
        header, rows, totals = self._cells()
        return as_text(header, rows + totals, self._lines())

    def _repr_html_(self) -> str:
        return as_html(*self._cells(), self._lines())

    def _lines(self) -> list[str]:
        """What stands below the table."""
        is_told = self.told and any(layer.speed_up is not None for layer in self.layers)
        return [*self.notes, f"speed: {self.told}"] if is_told else [*self.notes]

    def _cells(self) -> tuple[list[str], list[list[str]], list[list[str]]]:
        """The header, the rows of layers and the last rows."""
        totals = self.totals
        trained, worked = totals[-1].training_bytes is not None, totals[-1].multiply_adds is not None
        header = ["layer", "shape", "density", "connections", "bytes", "if dense"]
        header += ["training", "if dense"] if trained else []
        header += ["multiply-adds"] if worked else []
        at = "" if self.batch in (None, speed.BATCH) else f" at {self.batch}"
        header += [f"{'speed' if self.training else 'inference'}{at}", "dead", ""]
        remarks = [SHARED if total.name == "shared density" else "" for total in totals[:-1]]
        remarks += [WHOLE if remarks else ""]
        return (
            header,
            [_row(layer, _remark(layer), trained, worked) for layer in self.layers],
            [_row(total, remark, trained, worked) for total, remark in zip(totals, remarks, strict=True)],
        )


def _shape(layer: LayerReport) -> str:
    """As text; of several layers together their places."""
    return " x ".join(map(str, layer.shape)) if len(layer.shape) > 1 else f"{layer.shape[0]:,}"


def _row(layer: LayerReport, remark: str, trained: bool, worked: bool) -> list[str]:
    sizes = [layer.bytes, layer.dense_bytes] + [layer.training_bytes, layer.dense_training_bytes] * trained
    speed_up = "" if layer.speed_up is None else f"{layer.speed_up:.{1 if layer.speed_up >= 1 else 2}f} x"
    dead = "" if layer.without_inputs is None else f"{layer.without_inputs:,} + {layer.without_outputs:,}"
    numbers = f"{layer.density:.4g}", f"{layer.nnz:,}", *(f"{size:,}" for size in sizes)
    done = [_multiply_adds(layer)] * worked
    return [layer.name or "(model)", _shape(layer), *numbers, *done, speed_up, dead, remark]


def _multiply_adds(layer: LayerReport) -> str:
    """As text: those of the sparse layer, of those that the dense one would have."""
    if layer.multiply_adds is None or layer.dense_multiply_adds is None:
        return ""
    now, dense = amount(layer.multiply_adds), amount(layer.dense_multiply_adds)
    return now if layer.multiply_adds == layer.dense_multiply_adds else f"{now} of {dense}"


def _remark(layer: LayerReport) -> str:
    if layer.reason is not None:
        return f"{layer.kind} left dense: {layer.reason}"
    if layer.dense_multiply_adds == 0:
        return "the example does not reach it"
    return "larger and slower than dense" if layer.is_worse else "slower than dense" if layer.is_slower else ""
