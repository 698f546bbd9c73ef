"""Folds a batch norm into the layer before it: what both compute in evaluation, in one layer."""

import copy
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from sparsify._src import topology
from sparsify._src.layers.convolution import SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.layers.map import SparseMap
from sparsify._src.torch_private import has_forward_hooks

DIMS: dict[type[nn.Module], int] = {
    **{nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5},
    **{SparseLinear: 2, SparseConv1d: 3, SparseConv2d: 4, SparseConv3d: 5},
}
"""The layers into which a norm can be folded, and how many dimensions their output has then."""

STRICT: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
"""Norms that themselves see to it that their input has so many dimensions."""

LENIENT = (nn.BatchNorm1d, nn.SyncBatchNorm)
"""Norms that take inputs of several: of those of another rank they would normalize something else."""

NORMS = (*STRICT, *LENIENT)
"""All of them; timm's derives from one."""


class Folded(nn.Identity):
    """Stands where a batch norm was folded into the layer before it, and refuses what that would have mapped otherwise.

    Args:
        dims: of the input: a BatchNorm1d that is given (batch, length, channels) normalizes along the length.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, input: Tensor) -> Tensor:
        """The input.

        Raises:
            ValueError: it has another number of dimensions.
        """
        if not isinstance(input, Proxy) and input.dim() != self.dims:
            raise ValueError(
                f"input must have {self.dims} dimensions where a batch norm was folded into the layer before it, got "
                f"{tuple(input.shape)}: of other inputs the norm computes something else. Do not fuse it."
            )
        return input

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"dims={self.dims}"


def why_not(layer: nn.Module, norm: nn.Module) -> str | None:
    """Why `norm` cannot be folded into `layer`, which it follows directly; None where it can."""
    if type(layer) not in DIMS:
        return f"{type(layer).__name__} is no linear layer or convolution that it could be folded into"
    strict = STRICT.get(nn.BatchNorm2d if _is_norm_act(norm) else type(norm))
    if strict is None and type(norm) not in LENIENT:
        return f"{type(norm).__name__} is no batch norm that can be folded"
    if strict not in (None, DIMS[type(layer)]) or (type(norm) is nn.BatchNorm1d and DIMS[type(layer)] > 3):
        return f"the output of a {type(layer).__name__} is not what a {type(norm).__name__} takes"
    weight = "values" if isinstance(layer, SparseMap) else "weight"
    if isinstance(layer._parameters.get(weight), nn.UninitializedParameter):
        return "its layer does not know its shapes yet"
    if weight not in layer._parameters or "bias" not in layer._parameters:
        return "the weight or bias of its layer is computed from others (pruning, weight norm)"
    if "forward" in layer.__dict__ or "forward" in norm.__dict__:
        return "one of the two has a forward of its own"
    if layer._forward_hooks or has_forward_hooks(norm):
        return "hooks see what is between the two"
    if norm._buffers.get("running_mean") is None or norm._buffers.get("running_var") is None:
        return "it has no running statistics: it normalizes by each batch"
    if norm.num_features != _outs(layer):
        return f"it normalizes {norm.num_features} channels, and its layer has {_outs(layer)}"
    return None


def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A new layer that computes in evaluation what `layer` and then `norm` do; it has a bias."""
    scale, shift = _scale_and_shift(norm)
    bias = layer._parameters["bias"]
    weight = layer.get_parameter("values" if isinstance(layer, SparseMap) else "weight")
    offset = shift if bias is None else bias.detach().to(scale) * scale + shift
    trains = weight.requires_grad if bias is None else bias.requires_grad
    new_bias = nn.Parameter(offset.to(weight.dtype), trains)
    old = weight.detach().to(scale)
    if isinstance(layer, SparseMap):
        indices = layer.indices()
        of_each = scale[topology.rows(indices.crow, len(old))]
        return layer.with_numbers((old * of_each).to(weight.dtype), new_bias)
    new = copy.deepcopy(layer)
    of_rows = scale.view(-1, *[1] * (weight.dim() - 1))
    new.weight = nn.Parameter((old * of_rows).to(weight.dtype), weight.requires_grad)
    new.bias = new_bias
    return new


def rest(layer: nn.Module, norm: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What stands in the place of `norm` once it is folded into `layer`: timm's have an activation that stays.

    Args:
        memo: of `copy.deepcopy`.
    """
    if _is_norm_act(norm):
        parts = OrderedDict((name, copy.deepcopy(norm.get_submodule(name), memo)) for name in ("drop", "act"))
        return nn.Sequential(parts)
    return nn.Identity() if type(norm) in STRICT else Folded(DIMS[type(layer)])


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm, of a kind that can be folded or derived from one."""
    return isinstance(module, NORMS)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """By what a norm multiplies each channel, and what it adds then; float32, or float64 where it is that."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    dtype = torch.promote_types(mean.dtype, torch.float32)
    eps: float = norm.eps  # type: ignore[assignment]  # all of them have one
    scale = torch.rsqrt(variance.to(dtype) + eps)
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    if weight is not None:
        scale = scale * weight.detach().to(dtype)
    shift = -mean.to(dtype) * scale
    return scale, shift if bias is None else shift + bias.detach().to(dtype)


def _outs(layer: nn.Module) -> int:
    """How many output channels a layer has."""
    return layer.out_features if isinstance(layer, SparseMap) else layer.get_parameter("weight").shape[0]


def _is_norm_act(module: nn.Module) -> bool:
    """Whether `module` is timm's batch norm with dropping and an activation after it."""
    timm = sys.modules.get("timm.layers.norm_act")
    return timm is not None and type(module) is timm.BatchNormAct2d
