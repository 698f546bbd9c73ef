"""What a plan and a summary show: a row for each weight matrix, printed as a table."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsify._src.conversion.linear_maps import LinearMap
from sparsify._src.conversion.speed import speed_up
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.topology import Shape, index_dtype

HEADER = ("layer", "shape", "density", "connections", "bytes", "if dense", "speed", "dead", "")


@dataclass(frozen=True)
class LayerReport:
    """One layer of a `Report`.

    name: as in `model.named_modules()`.
    kind: the class of the module that is there now.
    shape: of its weight, (out_features, in_features) for a linear layer.
    nnz: connections; all places where it is dense.
    bytes: of its weight, with indices where it is sparse.
    dense_bytes: of its weight if dense.
    reason: why it is left dense; None where it is sparse.
    speed_up: how many times faster than dense it is expected to train, on this CPU at batch 128 (a model fitted to
        measurements: `sparsify.conversion.speed`); below 1 it is slower. None where it is left dense.
    without_inputs: output units that no connection reaches: they are constant.
    without_outputs: input units that no connection leaves: what they compute is lost. Both None where there is no
        topology yet, and where it is dense.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nnz: int
    bytes: int
    dense_bytes: int
    reason: str | None
    speed_up: float | None = None
    without_inputs: int | None = None
    without_outputs: int | None = None

    @property
    def density(self) -> float:
        """Share of all places that are connections."""
        return self.nnz / max(1, math.prod(self.shape))

    @property
    def is_worse(self) -> bool:
        """Whether it is larger than dense, and expected to be slower too."""
        return self.bytes > self.dense_bytes and self.speed_up is not None and self.speed_up < 1


@dataclass(frozen=True)
class Report:
    """Every layer with a weight matrix, sparse or dense; prints as a table.

    layers: a row for each.
    again: elements and bytes of tied weights, which stand in several rows, that the total must not count again.
    """

    layers: tuple[LayerReport, ...]
    again: tuple[int, int] = (0, 0)

    @property
    def sparse(self) -> tuple[LayerReport, ...]:
        """The sparse layers."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def dense(self) -> tuple[LayerReport, ...]:
        """The layers left dense; each has its reason."""
        return tuple(layer for layer in self.layers if layer.reason is not None)

    def __str__(self) -> str:
        total = LayerReport(
            name="total",
            kind="",
            shape=(sum(math.prod(layer.shape) for layer in self.layers) - self.again[0],),
            nnz=sum(layer.nnz for layer in self.layers) - self.again[0],
            bytes=sum(layer.bytes for layer in self.layers) - self.again[1],
            dense_bytes=sum(layer.dense_bytes for layer in self.layers) - self.again[1],
            reason=None,
        )
        rows = [HEADER, *map(_cells, self.layers), _cells(total)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [[cell.rjust(width) for cell, width in zip(row[2:8], widths[2:], strict=False)] for row in rows]
        lines = [
            [row[0].ljust(widths[0]), row[1].ljust(widths[1]), *numbers, row[8]]
            for row, numbers in zip(rows, aligned, strict=True)
        ]
        return "\n".join("  ".join(line).rstrip() for line in lines)


def report(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    reason_of: Callable[[str], str | None],
    targets: Mapping[str, int],
) -> Report:
    """One row for each weight matrix: what is sparse, what can be, and what cannot.

    Args:
        reason_of: linear map -> why it stays dense, None where it does not.
        targets: connections in the end; a sparse layer that is not there stays as it is.
    """
    rows: list[LayerReport] = []
    owned: dict[nn.Module, dict[str, LinearMap]] = defaultdict(dict)
    for name, linear_map in maps.items():
        owned[linear_map.owner][name] = linear_map
    inside = {part for owner in owned for part in owner.modules()}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            rows.append(_sparse_row(name, module, targets.get(name)))
        elif module in owned:
            rows += [
                _row(key, linear_map, reason_of(key), targets.get(key, 0)) for key, linear_map in owned[module].items()
            ]
        elif module not in inside and not isinstance(module, SparseMultiheadAttention):
            rows += _other_rows(name, module)
    return Report(tuple(rows), _counted_again(model))


def _counted_again(model: nn.Module) -> tuple[int, int]:
    """Elements and bytes of weight matrices that are tied, once for each module beyond the first that has them."""
    seen: set[nn.Parameter] = set()
    again = []
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() >= 2:
                again += [parameter] if parameter in seen else []
                seen.add(parameter)
    return sum(p.numel() for p in again), sum(p.numel() * p.element_size() for p in again)


def _sparse_row(name: str, layer: SparseLinear, left: int | None) -> LayerReport:
    size, nnz = layer.values.element_size(), layer.nnz if left is None else left
    held = nnz * size + index_bytes(nnz, layer.shape)
    dense_bytes = layer.out_features * layer.in_features * size
    dead: list[int | None] = [int((torch.diff(starts) == 0).sum()) for starts in (layer.crow, layer.ccol)]
    dead = dead if nnz == layer.nnz else [None, None]
    faster = speed_up(layer.shape, nnz)
    return LayerReport(name, type(layer).__name__, layer.shape, nnz, held, dense_bytes, None, faster, *dead)


def _row(name: str, linear_map: LinearMap, reason: str | None, nnz: int) -> LayerReport:
    kind, shape, size = type(linear_map.owner).__name__, linear_map.shape, linear_map.linear.weight.element_size()
    places = shape[0] * shape[1]
    if reason is not None:
        return LayerReport(name, kind, shape, places, places * size, places * size, reason)
    held = nnz * size + index_bytes(nnz, shape)
    return LayerReport(name, kind, shape, nnz, held, places * size, None, speed_up(shape, nnz))


def _other_rows(name: str, module: nn.Module) -> list[LayerReport]:
    """The row of a module that holds weight matrices of another kind."""
    matrices = [p for p in module._parameters.values() if p is not None and p.dim() >= 2]
    if not matrices:
        return []
    weight = max(matrices, key=lambda p: p.numel())
    held = sum(p.numel() * p.element_size() for p in matrices)
    reason = "only linear layers become sparse"
    return [LayerReport(name, type(module).__name__, tuple(weight.shape), weight.numel(), held, held, reason)]


def index_bytes(nnz: int, shape: Shape) -> int:
    """Bytes of all index buffers of a layer of `shape` with `nnz` connections."""
    return index_dtype(nnz, shape).itemsize * (3 * nnz + shape[0] + 1 + shape[1] + 1)


def _cells(layer: LayerReport) -> tuple[str, ...]:
    shape = " x ".join(map(str, layer.shape))
    numbers = f"{layer.density:.4g}", f"{layer.nnz:,}", f"{layer.bytes:,}", f"{layer.dense_bytes:,}"
    speed = "" if layer.speed_up is None else f"{layer.speed_up:.1f} x"
    remark = f"{layer.kind} left dense: {layer.reason}" if layer.reason else ""
    if layer.is_worse:
        remark = "larger and slower than dense" + (": name it in skip" if layer.without_inputs is None else "")
    dead = "" if layer.without_inputs is None else f"{layer.without_inputs:,} + {layer.without_outputs:,}"
    return layer.name or "(model)", shape, *numbers, speed, dead, remark
