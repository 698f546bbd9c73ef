"""`LayerReport`: a row of a plan or a summary."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One layer of a `Report`, or several together.

    name: as in `model.named_modules()`.
    kind: the class of the module that is there now.
    shape: of its weight, (out_features, in_features) for a linear layer.
    nnz: connections; all places where it is dense.
    bytes: of its weight, with indices where it is sparse.
    dense_bytes: of its weight if dense.
    reason: why it is left dense; None where it is sparse.
    milliseconds: how long it is expected to take forward and backward, or forward alone where the report is of
        inference (`sparsify._src.conversion.speed`); None where it is not on a CPU, where it is neither a linear layer
        nor a convolution, and of a convolution without an example.
    dense_milliseconds: the same if dense.
    training_bytes: with the gradient and what the optimizer keeps; None where no optimizer is given, or where it cannot
        be found out what it keeps.
    dense_training_bytes: the same if dense.
    without_inputs: output units that no connection reaches: they are constant.
    without_outputs: input units that no connection leaves: what they compute is lost. Units of a convolution are its
        channels. Both None where there is no topology yet, and where it is dense.
    shares: whether the density that was asked for is shared among this layer and others. One whose share is 1 stays
        dense.
    multiply_adds: of all its calls in one forward pass of the example; a module that is never called has none. None
        without an example, and where it is not known what the module computes.
    dense_multiply_adds: the same if dense.

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
    multiply_adds: int | None = None
    dense_multiply_adds: int | None = None

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


def together(name: str, layers: Sequence[LayerReport], again: tuple[int, int, int] = (0, 0, 0)) -> LayerReport:
    """Several layers as one row."""
    timed = [x for x in layers if x.milliseconds is not None and x.dense_milliseconds is not None]
    held, dense = [x.training_bytes for x in layers], [x.dense_training_bytes for x in layers]
    is_known = not (None in held or None in dense)
    work, dense_work = _sum(x.multiply_adds for x in layers), _sum(x.dense_multiply_adds for x in layers)
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
        multiply_adds=work,
        dense_multiply_adds=dense_work,
        training_bytes=sum(x or 0 for x in held) - again[2] if is_known else None,
        dense_training_bytes=sum(x or 0 for x in dense) - again[2] if is_known else None,
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Of those that are known; None where none is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
