"""What a sparse layer takes over from the dense one in whose place it comes: connections, values, bias."""

import math

import torch
from torch import Tensor, nn

from sparsify._src import vectors
from sparsify._src.evolution.grown_values import fan_in_uniform
from sparsify._src.layers.initialization import drawn_bias, drawn_generator, real_device
from sparsify._src.topology import Shape


def matrix_shape(dense: nn.Module) -> Shape:
    """(out_features, in_features) of a layer, or of a convolution (out_channels, in_channels / groups * taps)."""
    weight: Tensor = dense.weight  # type: ignore[assignment]  # it may be computed from others
    return weight.shape[0], math.prod(weight.shape[1:])


def choose_connections(
    dense: nn.Module, nnz: int, start: str, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """Choose `nnz` connections of `dense`.

    Args:
        start: "random" samples them uniformly; "magnitude" takes the largest weights.
        generator: on the CPU; None seeds one from torch's global generator, where something is random.
    Returns:
        sorted flat indices (nnz,), and by what their values are to be multiplied for the sparse fan-in.
    Raises:
        ValueError: the largest weights are asked of a layer on the meta device.
    """
    weight = dense.get_parameter("weight").detach()
    if weight.is_meta and start != "random":
        raise ValueError(f'start must be "random" for a layer on the meta device, got {start!r}: it has no values.')
    if start == "magnitude":
        return vectors.lowest(-weight.abs().flatten(), nnz), 1.0
    flat = vectors.sample(weight.numel(), nnz, generator or drawn_generator())
    return flat.to(real_device() if weight.is_meta else weight.device), math.sqrt(weight.numel() / nnz)


def take_values(
    dense: nn.Module, flat: Tensor, scale: float, generator: torch.Generator | None
) -> tuple[Tensor, nn.Parameter | None]:
    """The values of these connections, and the bias, which is shared with `dense`.

    On the meta device there are none to take over: they are drawn as of a new layer, on torch's default device.
    """
    weight, bias = dense.get_parameter("weight").detach(), dense._parameters["bias"]
    if not weight.is_meta:
        return weight.flatten()[flat.to(weight.device)] * scale, bias
    generator, shape = generator or drawn_generator(), matrix_shape(dense)
    values = fan_in_uniform(len(flat), shape, len(flat), generator).to(weight.dtype).to(real_device())
    if bias is not None:
        bias = nn.Parameter(drawn_bias(shape, generator).to(values), bias.requires_grad)
    return values, bias
