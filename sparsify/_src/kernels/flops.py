"""Tells torch.utils.flop_counter what a sparse product costs: a multiplication and an addition for each connection."""

from math import prod
from types import ModuleType
from typing import Any

import torch
import wrapt

from sparsify._src.kernels import ops  # noqa: F401  (registers torch.ops.sparsify)


def _of_forward(input: torch.Size, values: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * input[0] * values[0]


def _of_convolution(input: torch.Size, values: torch.Size, *rest: Any, out_shape: torch.Size, **_: Any) -> int:
    return 2 * out_shape[0] * prod(out_shape[2:]) * values[0]


def _of_convolution_backward(grad: torch.Size, input: torch.Size, values: torch.Size, *rest: Any, **_: Any) -> int:
    needs: list[bool] = rest[-2]
    return 2 * grad[0] * prod(grad[2:]) * values[0] * sum(needs[:2])


def _of_backward(grad: torch.Size, input: torch.Size, values: torch.Size, *rest: Any, **_: Any) -> int:
    needs: list[bool] = rest[-1]
    return 2 * input[0] * values[0] * sum(needs[:2])  # the bias's is a sum


@wrapt.when_imported("torch.utils.flop_counter")  # at once or later: it imports Triton, which is slow
def _register(flop_counter: ModuleType) -> None:
    flop_counter.register_flop_formula(torch.ops.sparsify.linear)(_of_forward)
    flop_counter.register_flop_formula(torch.ops.sparsify.linear_backward)(_of_backward)
    flop_counter.register_flop_formula(torch.ops.sparsify.convolution)(_of_convolution)
    flop_counter.register_flop_formula(torch.ops.sparsify.convolution_backward)(_of_convolution_backward)
