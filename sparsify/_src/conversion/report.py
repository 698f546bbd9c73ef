"""`Report`: what a plan and a summary show, a row for each weight matrix, as a table or as plain data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsify._src.conversion import speed
from sparsify._src.conversion.table import as_html, as_text

SHARED = "the sparse layers, and those whose density is 1"
"""What the row of a density that was shared out counts, where that is more than the sparse layers."""

WHOLE = "with the layers left dense"
"""What the row of the whole model counts beyond the one before."""


@dataclass(frozen=True)
class LayerReport:
    """One layer of a `Report`, or several together.

    name: as in `model.named_modules()`.
    kind: the class of the module that is there now.
    shape: of its weight, (out_features, in_features) for a linear layer, that of nn.Conv*'s for a convolution.
    nnz: connections; all places where it is dense.
    bytes: of its weight, with indices where it is sparse.
    dense_bytes: of its weight if dense.
    reason: why it is left dense; None where it is sparse.
    milliseconds: how long it is expected to take forward and backward, or forward alone where the report is of
        inference (`sparsify._src.conversion.speed`); None where it is not a linear layer, or not on a CPU.
    dense_milliseconds: the same if dense.
    training_bytes: with the gradient and what the optimizer keeps; None where no optimizer is given, or where it cannot
        be found out what it keeps.
    dense_training_bytes: the same if dense.
    without_inputs: output units that no connection reaches: they are constant.
    without_outputs: input units that no connection leaves: what they compute is lost. Units of a convolution are its
        channels. Both None where there is no topology yet, and where it is dense.
    shares: whether the density that was asked for is shared among this layer and others. One whose share is 1 stays
        dense.

    Example:
        >>> layer = plan(nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 10)), {"0": 0.1}).layers[0]
        >>> layer.name, layer.shape, layer.nnz, layer.density
        ('0', (300, 400), 12000, 0.1)
        >>> layer.bytes, layer.dense_bytes  # four bytes a value; for each connection twelve of indices
        (194808, 480000)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nnz: int
    bytes: int
    dense_bytes: int
    reason: str | None
    milliseconds: float | None = None
    dense_milliseconds: float | None = None
    training_bytes: int | None = None
    dense_training_bytes: int | None = None
    without_inputs: int | None = None
    without_outputs: int | None = None
    shares: bool = False

    @property
    def density(self) -> float:
        """Share of all places that are connections."""
        return self.nnz / max(1, math.prod(self.shape))

    @property
    def speed_up(self) -> float | None:
        """How many times faster than dense it is expected to be on this CPU; below 1 it is slower. None where it is
        left dense, and where that is not known."""
        if self.reason is not None or self.milliseconds is None or self.dense_milliseconds is None:
            return None
        return self.dense_milliseconds / self.milliseconds

    @property
    def is_slower(self) -> bool:
        """Whether it is expected to be slower than dense: what `skip="losing"` leaves dense."""
        return self.speed_up is not None and self.speed_up < 1

    @property
    def is_worse(self) -> bool:
        """Whether it is larger than dense (in training, where that is known), and expected to be slower too."""
        held, dense = self.training_bytes, self.dense_training_bytes
        larger = self.bytes > self.dense_bytes if held is None or dense is None else held > dense
        return larger and self.is_slower


@dataclass(frozen=True)
class Report:
    """Every layer with a weight matrix, sparse or dense: `print` it for a table; a notebook shows one too.

    The last row is of the whole model. Where layers are left dense, the row before is of those that the density is of.

    layers: a row for each.
    again: elements, bytes and bytes in training of tied weights, which stand in several rows, and which the whole model
        must not count again.
    batch: rows of input that a layer sees at once, for which speeds are told.
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
    batch: int = speed.BATCH
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
        together, those left dense at their dense time; attention, norms, the optimizer's step are not counted.

        Where other layers are in the model, a first one is of those that share the density, else of the sparse ones.
        """
        sharing = tuple(layer for layer in self.layers if layer.shares)
        counted = sharing or self.sparse
        name = "sparse layers" if counted == self.sparse else "shared density"
        part = [_together(name, counted)] if 0 < len(counted) < len(self.layers) else []
        return (*part, _together("whole model", self.layers, self.again))

    @property
    def speed_up(self) -> float | None:
        """How many times faster all linear layers of the model are expected to be together; see `totals`."""
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
        trained = totals[-1].training_bytes is not None
        header = ["layer", "shape", "density", "connections", "bytes", "if dense"]
        header += ["training", "if dense"] if trained else []
        at = "" if self.batch == speed.BATCH else f" at {self.batch}"
        header += [f"{'speed' if self.training else 'inference'}{at}", "dead", ""]
        remarks = [SHARED if total.name == "shared density" else "" for total in totals[:-1]]
        remarks += [WHOLE if remarks else ""]
        return (
            header,
            [_row(layer, _remark(layer), trained) for layer in self.layers],
            [_row(total, remark, trained) for total, remark in zip(totals, remarks, strict=True)],
        )


def _together(name: str, layers: Sequence[LayerReport], again: tuple[int, int, int] = (0, 0, 0)) -> LayerReport:
    """Several layers as one row."""
    timed = [x for x in layers if x.milliseconds is not None and x.dense_milliseconds is not None]
    held, dense = [x.training_bytes for x in layers], [x.dense_training_bytes for x in layers]
    is_known = not (None in held or None in dense)
    return LayerReport(
        name=name,
        kind="",
        shape=(sum(math.prod(layer.shape) for layer in layers) - again[0],),
        nnz=sum(layer.nnz for layer in layers) - again[0],
        bytes=sum(layer.bytes for layer in layers) - again[1],
        dense_bytes=sum(layer.dense_bytes for layer in layers) - again[1],
        reason=None,
        milliseconds=sum(x.milliseconds or 0 for x in timed) if timed else None,
        dense_milliseconds=sum(x.dense_milliseconds or 0 for x in timed) if timed else None,
        training_bytes=sum(x or 0 for x in held) - again[2] if is_known else None,
        dense_training_bytes=sum(x or 0 for x in dense) - again[2] if is_known else None,
    )


def _shape(layer: LayerReport) -> str:
    """As text; of several layers together their places."""
    return " x ".join(map(str, layer.shape)) if len(layer.shape) > 1 else f"{layer.shape[0]:,}"


def _row(layer: LayerReport, remark: str, trained: bool) -> list[str]:
    sizes = [layer.bytes, layer.dense_bytes] + [layer.training_bytes, layer.dense_training_bytes] * trained
    speed_up = "" if layer.speed_up is None else f"{layer.speed_up:.{1 if layer.speed_up >= 1 else 2}f} x"
    dead = "" if layer.without_inputs is None else f"{layer.without_inputs:,} + {layer.without_outputs:,}"
    numbers = f"{layer.density:.4g}", f"{layer.nnz:,}", *(f"{size:,}" for size in sizes), speed_up, dead
    return [layer.name or "(model)", _shape(layer), *numbers, remark]


def _remark(layer: LayerReport) -> str:
    if layer.reason is not None:
        return f"{layer.kind} left dense: {layer.reason}"
    return "larger and slower than dense" if layer.is_worse else "slower than dense" if layer.is_slower else ""
