"""Makes a `Report`: goes through a model and tells of every weight matrix."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import nn

from sparsify._src.conversion import speed, work
from sparsify._src.conversion.calls import Seen
from sparsify._src.conversion.distributions import Sizes
from sparsify._src.conversion.layer_report import LayerReport
from sparsify._src.conversion.linear_maps import (
    CONVOLUTIONS,
    DEPTHWISE,
    KINDS,
    TRANSPOSED,
    LinearMap,
    is_depthwise,
    kind_of,
)
from sparsify._src.conversion.report import Report
from sparsify._src.conversion.training_bytes import TrainingBytes
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.from_dense import matrix_shape
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Shape, index_dtype


def report(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    reason_of: Callable[[str], str | None],
    targets: Mapping[str, int],
    *,
    sharing: Collection[str] = (),
    use: speed.Use = speed.USUAL,
    training: TrainingBytes | None = None,
    seen: Seen | None = None,
) -> Report:
    """One row for each weight matrix: what is sparse, what can be, and what cannot.

    Args:
        reason_of: linear map -> why it stays dense, None where it does not.
        targets: connections in the end; a sparse layer that is not there stays as it is.
        sharing: the layers among which a density is shared.
        use: for what speeds are told.
        training: tells what training holds beside a weight.
        seen: how an example calls each layer.
    """
    rows: list[LayerReport] = []
    owned: dict[nn.Module, dict[str, LinearMap]] = defaultdict(dict)
    for name, linear_map in maps.items():
        owned[linear_map.owner][name] = linear_map
    inside = {part for owner in owned for part in owner.modules()}
    for name, module in model.named_modules():
        if isinstance(module, SparseMap):
            rows.append(_sparse_row(name, module, targets.get(name), use, training, seen))
        elif module in owned:
            rows += [
                _row(key, linear_map, reason_of(key), targets.get(key, 0), use, training, seen)
                for key, linear_map in owned[module].items()
            ]
        elif module not in inside and not isinstance(module, SparseMultiheadAttention):
            rows += _other_rows(name, module, use, training, seen)
    rows = [replace(row, shares=True) if row.name in sharing else row for row in rows]
    told = speed.figures().told(any(row.milliseconds is not None and len(row.shape) > 2 for row in rows))
    batch = use.batch if seen is None else None
    return Report(tuple(rows), _counted_again(model, training), batch, use.training, told=told)


def _counted_again(model: nn.Module, training: TrainingBytes | None) -> tuple[int, int, int]:
    """Elements, bytes and bytes in training of tied weight matrices, once for each module beyond the first."""
    seen: set[nn.Parameter] = set()
    again = []
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() >= 2:
                again += [parameter] if parameter in seen else []
                seen.add(parameter)
    held = sum(p.numel() * p.element_size() for p in again)
    beside = [training.beside(p) or 0 for p in again] if training else []
    return sum(p.numel() for p in again), held, held + sum(beside)


def _sparse_row(
    name: str, layer: SparseMap, left: int | None, use: speed.Use, training: TrainingBytes | None, seen: Seen | None
) -> LayerReport:
    nnz = layer.nnz if left is None else left
    row = _linear_row(name, layer, layer.values, layer.shape, layer.shape_by_taps, None, nnz, use, training, seen)
    if nnz != layer.nnz:
        return row
    without_inputs = int((torch.diff(layer.crow) == 0).sum())
    return replace(row, without_inputs=without_inputs, without_outputs=_never_read(layer))


def _never_read(layer: SparseMap) -> int:
    """How many inputs no connection reads: features, or channels of a convolution, whose columns are many."""
    window = layer.window
    if window is None:
        return int((torch.diff(layer.ccol) == 0).sum())
    row, column = layer.flat() // layer.in_features, layer.col
    read = row // (layer.out_features // window.groups) * (layer.in_features // window.taps) + column // window.taps
    return int((torch.bincount(read, minlength=window.in_channels(layer.in_features)) == 0).sum())


def _row(
    name: str,
    linear_map: LinearMap,
    reason: str | None,
    nnz: int,
    use: speed.Use,
    training: TrainingBytes | None,
    seen: Seen | None,
) -> LayerReport:
    weight = linear_map.owner._parameters.get(linear_map.weight)
    known = linear_map.weight_now if weight is None else weight  # computed from others: it has no state of its own
    sizes = linear_map.weight_shape
    return _linear_row(name, linear_map.owner, known, linear_map.shape, sizes, reason, nnz, use, training, seen)


def _linear_row(
    name: str,
    module: nn.Module,
    weight: torch.Tensor,
    shape: Shape,
    sizes: Sizes,
    reason: str | None,
    nnz: int,
    use: speed.Use,
    training: TrainingBytes | None,
    seen: Seen | None,
) -> LayerReport:
    """The row of a linear layer or a convolution, `weight` being the parameter that holds its weight, or more than it.

    Args:
        shape: of the matrix of connections.
        sizes: of the weight, taps apart.
    """
    size, places = weight.element_size(), shape[0] * shape[1]
    dense = places * size
    nnz, held = (nnz, nnz * size + index_bytes(nnz, shape)) if reason is None else (places, dense)
    beside = training.beside(weight, (nnz,) if reason is None else sizes) if training else None
    beside_dense = training.beside(weight, sizes) if training else None
    sparse, timed = work.milliseconds(name, shape, nnz, weight.device, len(sizes) == 2, use, seen)
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        shape=sizes,
        nnz=nnz,
        bytes=held,
        dense_bytes=dense,
        reason=reason,
        milliseconds=sparse if reason is None else timed,
        dense_milliseconds=timed,
        training_bytes=None if beside is None else held + beside,
        dense_training_bytes=None if beside_dense is None else dense + beside_dense,
        multiply_adds=work.multiply_adds(name, nnz, seen),
        dense_multiply_adds=work.multiply_adds(name, places, seen),
    )


def _other_rows(
    name: str, module: nn.Module, use: speed.Use, training: TrainingBytes | None, seen: Seen | None
) -> list[LayerReport]:
    """The row of a module that holds weight matrices of another kind."""
    matrices = [p for p in module._parameters.values() if p is not None and p.dim() >= 2]
    if not matrices:
        return []
    weight = max(matrices, key=lambda p: p.numel())
    held = sum(p.numel() * p.element_size() for p in matrices)
    beside = [training.beside(p) for p in matrices] if training else [None]
    trained = None if None in beside else held + sum(x or 0 for x in beside)
    products, timed = work.multiply_adds(name, sum(p.numel() for p in matrices), seen), None
    if isinstance(module, KINDS):  # of a kind that was not asked for
        shape, linear = matrix_shape(module), isinstance(module, nn.Linear)
        timed = work.milliseconds(name, shape, weight.numel(), weight.device, linear, use, seen)[1]
    return [
        LayerReport(
            name=name,
            kind=type(module).__name__,
            shape=tuple(weight.shape),
            nnz=weight.numel(),
            bytes=held,
            dense_bytes=held,
            reason=_why_not(module),
            training_bytes=trained,
            dense_training_bytes=trained,
            milliseconds=timed,
            dense_milliseconds=timed,
            multiply_adds=products,
            dense_multiply_adds=products,
        )
    ]


def _why_not(module: nn.Module) -> str:
    """Why a module that no kind names stays dense."""
    if isinstance(module, CONVOLUTIONS):
        if is_depthwise(module):
            return DEPTHWISE
        return f"kinds=(nn.Linear, nn.{kind_of(module).__name__}) makes it sparse"
    if isinstance(module, TRANSPOSED):
        return "transposed convolutions stay dense"
    if isinstance(module, nn.Linear):
        return "kinds does not name nn.Linear"
    return "only linear layers and convolutions become sparse"


def index_bytes(nnz: int, shape: Shape) -> int:
    """Bytes of all index buffers of a layer of `shape` with `nnz` connections."""
    return index_dtype(nnz, shape).itemsize * (3 * nnz + shape[0] + 1 + shape[1] + 1)
