"""`reset_parameters`: new values and a new random topology, prepared."""

from functools import partial

import torch
from torch import Tensor, nn

from sparsify._src import vectors
from sparsify._src.layers import averaging, copies
from sparsify._src.layers.initialization import drawn, drawn_generator
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import Change


@torch.no_grad()
def prepare_reset(layer: SparseMatrix, zero_bias: bool) -> list[Change]:
    """Prepare to reset `layer`, which may have a bias; there is nothing to do for one on the meta device.

    Args:
        zero_bias: whether a new bias is zero.
    Raises:
        ValueError: values or bias is no parameter of the layer's own.
    """
    if not vectors.holds_numbers(layer.values):
        return []
    if "bias" not in layer._parameters:
        raise ValueError(
            "bias must be the layer's own parameter, got it computed from others. Undo what has replaced it "
            "(pruning, parametrization) before the layer is reset."
        )
    bias = layer._parameters["bias"]
    flat, values, offsets = drawn(layer.shape, layer.nnz, bias is not None, drawn_generator())
    counting = partial(setattr, layer, "resets", layer.resets + 1)
    changes: list[Change] = [counting, layer.prepare_topology(flat, values, None)]
    if bias is not None and offsets is not None:
        changes.append(partial(_start, bias, torch.zeros_like(offsets) if zero_bias else offsets))
    return [*changes, averaging.prepare_copies(layer, []), partial(copies.loaded, layer)]


def _start(parameter: nn.Parameter, numbers: Tensor) -> None:
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(numbers)
        parameter.grad = None
