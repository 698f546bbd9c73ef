"""Finds the linear maps of a model that can become sparse, whatever kind of module holds them."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sparsify.linear import adopt

EVERYTHING = slice(None)


class Candidate(NamedTuple):
    """One weight matrix that acts as a linear map.

    owner: the module that is replaced where it becomes sparse: an nn.Linear, a Conv1D of Hugging Face's, or the
        nn.MultiheadAttention of which it is a projection.
    linear: the same map as an nn.Linear: the owner itself, or one that views the owner's weight.
    part: its name within the owner; "" where it is all of it.
    weight, bias: names of the owner's parameters that hold it, and which of their rows do.
    transposed: whether the owner's weight is (in_features, out_features).
    """

    owner: nn.Module
    linear: nn.Linear
    part: str = ""
    weight: str = "weight"
    weight_rows: slice = EVERYTHING
    bias: str = "bias"
    bias_rows: slice = EVERYTHING
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.linear.out_features, self.linear.in_features

    def within(self, name: str) -> str:
        """The name of a parameter of the layer that takes its place, as seen from the owner."""
        return f"{self.part}.{name}" if self.part else name

    def of_weight(self, tensor: Tensor) -> Tensor:
        """Its part (out_features, in_features) of a tensor that has the shape of the owner's weight."""
        return tensor.t() if self.transposed else tensor[self.weight_rows]

    def of_bias(self, tensor: Tensor) -> Tensor:
        """A copy of its part (out_features,) of a tensor that has the shape of the owner's bias."""
        return tensor[self.bias_rows].clone()


def find(model: nn.Module) -> dict[str, Candidate]:
    """Every linear map of `model`, by the name of the sparse layer that may take its place."""
    found: dict[str, Candidate] = {}
    for name, module in model.named_modules():
        for candidate in of(module):
            found.setdefault(f"{name}.{candidate.part}".strip("."), candidate)
    return found


def of(module: nn.Module) -> Iterator[Candidate]:
    """The linear maps that go where `module` goes."""
    if isinstance(module, nn.MultiheadAttention):
        if _computes_as_torch(module):
            yield from _of_attention(module)
    elif isinstance(module, nn.Linear):
        yield Candidate(module, module)
    elif _is_conv1d(module):
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        conv1d = Candidate(module, nn.Linear(weight.shape[0], weight.shape[1], device="meta"), transposed=True)
        conv1d.linear.weight, conv1d.linear.bias = _view(weight, conv1d.of_weight), bias
        adopt(conv1d.linear, module)
        yield conv1d


def _of_attention(attention: nn.MultiheadAttention) -> Iterator[Candidate]:
    size, bias = attention.embed_dim, attention.in_proj_bias
    widths = {"q_proj": size, "k_proj": attention.kdim, "v_proj": attention.vdim}
    for number, (part, width) in enumerate(widths.items()):
        rows = slice(number * size, (number + 1) * size)
        whole = ("in_proj_weight", rows) if attention.in_proj_weight is not None else (f"{part}_weight", EVERYTHING)
        linear = nn.Linear(width, size, bias=bias is not None, device="meta").train(attention.training)
        candidate = Candidate(attention, linear, part, *whole, "in_proj_bias", rows)
        linear.weight = _view(attention.get_parameter(candidate.weight), candidate.of_weight)
        if bias is not None:
            linear.bias = _view(bias, candidate.of_bias)
        yield candidate
    yield Candidate(attention, attention.out_proj, "out_proj", "out_proj.weight", bias="out_proj.bias")


def _computes_as_torch(attention: nn.MultiheadAttention) -> bool:
    own_forward = type(attention).forward is not nn.MultiheadAttention.forward or "forward" in attention.__dict__
    parametrized = any(is_parametrized(module) for module in attention.modules())
    return not own_forward and not parametrized and isinstance(attention.out_proj, nn.Linear)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is what GPT-2 has for its linear layers in Hugging Face's Transformers."""
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and type(module) is transformers.Conv1D


def _view(parameter: nn.Parameter, take: Callable[[Tensor], Tensor]) -> nn.Parameter:
    view = nn.Parameter(take(parameter.detach()), parameter.requires_grad)
    if parameter.grad is not None:
        view.grad = take(parameter.grad)
    return view
