"""Walks a model and decides for every layer: sparse at which density, or left dense and why."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.optim import Optimizer

from sparsify.attention import SparseMultiheadAttention
from sparsify.candidates import Candidate, find
from sparsify.cost import speed_up
from sparsify.distributions import Distribution, check_density, erdos_renyi
from sparsify.eligibility import refuse_model, why_dense
from sparsify.linear import SparseLinear
from sparsify.topology import Shape, connection_count, index_dtype

FULL = "its density is 1"
"""The reason of a layer whose share of the density reaches all its places."""

HEADER = ("layer", "shape", "density", "connections", "bytes", "if dense", "speed", "dead", "")

Density = float | Mapping[str, float] | Callable[[Shape], float]


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
        measurements: `sparsify.cost`); below 1 it is slower. None where it is left dense.
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


@dataclass(frozen=True)
class Report:
    """Every layer with a weight matrix, sparse or dense; prints as a table."""

    layers: tuple[LayerReport, ...]

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
            shape=(sum(math.prod(layer.shape) for layer in self.layers),),
            nnz=sum(layer.nnz for layer in self.layers),
            bytes=sum(layer.bytes for layer in self.layers),
            dense_bytes=sum(layer.dense_bytes for layer in self.layers),
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


def plan(
    model: nn.Module,
    density: Density,
    *,
    optimizer: Optimizer | None = None,
    distribution: Distribution = erdos_renyi,
    skip: Iterable[str] = (),
) -> Report:
    """Tell what `sparsify` would do with the same arguments, without doing it.

    Args:
        model, density, distribution, skip: as for `sparsify`.
        optimizer: as for `sparsify`; None takes every trainable layer as held by one.
    Returns:
        a Report; `print` it for a table.
    Raises:
        ValueError, TypeError: as `sparsify`.
    """
    refuse_model(model)
    candidates = find(model)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    _check_globs("skip", skip, candidates)
    reasons = why_dense(model, candidates, optimizer)
    for name in candidates:
        if any(names(glob, name) for glob in skip):
            reasons.setdefault(name, "skip names it")
    eligible = {name: candidate.shape for name, candidate in candidates.items() if name not in reasons}
    counts = _connections(density, eligible, distribution, candidates)
    for name, shape in eligible.items():
        if name not in counts:
            reasons[name] = "no glob of density names it"
        elif counts[name] == shape[0] * shape[1]:
            reasons[name] = FULL
    return _report(model, candidates, reasons.get, counts.__getitem__)


def summary(model: nn.Module) -> Report:
    """Tell what `model` is now: each layer's shape, density, connections, bytes and dead units (in the table: units
    without inputs + units without outputs).

    Returns:
        a Report; `print` it for a table.
    """
    candidates = find(model)
    kinds = {name: type(candidate.owner).__name__ for name, candidate in candidates.items()}
    return _report(model, candidates, lambda name: f"it is an ordinary {kinds[name]}", lambda name: 0)


def names(glob: str, name: str) -> bool:
    """Whether `glob` names the module `name` or one that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: depth + 1]), glob) for depth in range(len(parts)))


def _connections(
    density: Density, shapes: Mapping[str, Shape], distribution: Distribution, linears: Iterable[str]
) -> dict[str, int]:
    """Connections of each layer that `density` covers."""
    if isinstance(density, Mapping):
        for glob, value in density.items():
            check_density(value, f" for {glob!r}")
        _check_globs("density", tuple(density), linears)
        matches = {name: [value for glob, value in density.items() if names(glob, name)] for name in shapes}
        return {name: connection_count(found[0], shapes[name]) for name, found in matches.items() if found}
    if callable(density):
        own = {name: check_density(density(shape), f" in layer {name!r}") for name, shape in shapes.items()}
        return {name: connection_count(value, shapes[name]) for name, value in own.items()}
    return _exact(distribution(shapes, check_density(density)), shapes)


def _exact(densities: Mapping[str, float], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Whole connections of each layer, whose sum is the nearest to the densities' (largest remainder)."""
    if uncovered := shapes.keys() - densities.keys():
        raise ValueError(f"distribution must give every layer a density, got none for {sorted(uncovered)}.")
    wanted = {
        name: check_density(densities[name], f" in layer {name!r}") * shape[0] * shape[1]
        for name, shape in shapes.items()
    }
    counts = {name: max(1, math.floor(value + 1e-6)) for name, value in wanted.items()}
    missing = round(sum(wanted.values())) - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts


def _check_globs(argument: str, globs: Sequence[str], layers: Iterable[str]) -> None:
    layers = list(layers)
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"{argument} must hold module-name globs, got {glob!r}.")
        if not any(names(glob, name) for name in layers):
            raise ValueError(f"{argument} must name linear layers, got {glob!r}, which names none of {layers}.")


def _report(
    model: nn.Module,
    candidates: Mapping[str, Candidate],
    reason_of: Callable[[str], str | None],
    nnz_of: Callable[[str], int],
) -> Report:
    """One row for each weight matrix: what is sparse, what can be, and what cannot."""
    rows = []
    inside = {id(part) for candidate in candidates.values() for part in candidate.owner.modules()}
    for name, module in model.named_modules():
        own = {key: c for key, c in candidates.items() if c.owner is module}
        if isinstance(module, SparseLinear):
            rows.append(_sparse_row(name, module))
        elif own:
            rows += [_row(key, c, reason_of(key), nnz_of) for key, c in own.items()]
        elif id(module) not in inside and not isinstance(module, SparseMultiheadAttention):
            rows += _other_rows(name, module)
    return Report(tuple(rows))


def _sparse_row(name: str, layer: SparseLinear) -> LayerReport:
    size = layer.values.element_size()
    held = layer.nnz * size + index_bytes(layer.nnz, layer.shape)
    dense_bytes = layer.out_features * layer.in_features * size
    dead = [int((torch.diff(starts) == 0).sum()) for starts in (layer.crow, layer.ccol)]
    faster = speed_up(layer.shape, layer.nnz)
    return LayerReport(name, type(layer).__name__, layer.shape, layer.nnz, held, dense_bytes, None, faster, *dead)


def _row(name: str, candidate: Candidate, reason: str | None, nnz_of: Callable[[str], int]) -> LayerReport:
    kind, shape, size = type(candidate.owner).__name__, candidate.shape, candidate.linear.weight.element_size()
    places = shape[0] * shape[1]
    if reason is not None:
        return LayerReport(name, kind, shape, places, places * size, places * size, reason)
    nnz = nnz_of(name)
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
    left = f"{layer.kind} left dense: {layer.reason}" if layer.reason else ""
    dead = "" if layer.without_inputs is None else f"{layer.without_inputs:,} + {layer.without_outputs:,}"
    return layer.name or "(model)", shape, *numbers, speed, dead, left
