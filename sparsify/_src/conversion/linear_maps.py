"""Finds the linear maps of a model that can become sparse, whatever kind of module holds them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sparsify._src.checks import shown
from sparsify._src.layers.adoption import adopt
from sparsify._src.layers.from_dense import matrix_shape

EVERYTHING = slice(None)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

KINDS = (nn.Linear, *CONVOLUTIONS)
"""The kinds of layers that can become sparse; attention and Hugging Face's Conv1D go with nn.Linear."""

Kinds = Sequence[type[nn.Module]]

DEFAULT = (nn.Linear,)


DEPTHWISE = "it is depthwise: each of its filters reads a single channel"
"""Why such a convolution stays dense."""


def is_depthwise(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    """Whether each filter of a convolution reads one channel of several."""
    return module.groups > 1 and module.groups == module.in_channels


def checked_kinds(kinds: object) -> tuple[type[nn.Module], ...]:
    """The kinds that a user names, of which one may stand alone.

    Raises:
        TypeError: one is none of `KINDS`, or there is none.
    """
    given: Any = (kinds,) if isinstance(kinds, type) else kinds
    known = ", ".join(f"nn.{kind.__name__}" for kind in KINDS)
    if not isinstance(given, (tuple, list, set, frozenset)) or not given:
        raise TypeError(f"kinds must hold some of {known}, got {shown(kinds)}.")
    for kind in given:
        if kind not in KINDS:
            transposed = isinstance(kind, type) and issubclass(kind, TRANSPOSED)
            more = " Transposed convolutions stay dense." if transposed else ""
            raise TypeError(f"kinds must hold some of {known}, got {shown(kind)}.{more}")
    return tuple(given)


class LinearMap(NamedTuple):
    """One weight matrix that acts as a linear map.

    owner: the module that is replaced where it becomes sparse: an nn.Linear, an nn.Conv*, a Conv1D of Hugging Face's,
        or the nn.MultiheadAttention of which it is a projection.
    dense: the same map as an nn.Linear or nn.Conv*: the owner itself, or one that views the owner's weight.
    projection: its name within the owner; "" where it is all of it.
    weight, bias: names of the owner's parameters that hold it, and which of their rows do.
    transposed: whether the owner's weight is (in_features, out_features).
    """

    owner: nn.Module
    dense: nn.Module
    projection: str = ""
    weight: str = "weight"
    weight_rows: slice = EVERYTHING
    bias: str = "bias"
    bias_rows: slice = EVERYTHING
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), or of a convolution (out_channels, in_channels / groups * taps)."""
        return matrix_shape(self.dense)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The same with the taps apart, as distributions see it: (out_channels, in_channels / groups, *kernel_size)."""
        outs, ins = self.shape
        return tuple(self.weight_now.shape) if isinstance(self.dense, CONVOLUTIONS) else (outs, ins)

    @property
    def weight_now(self) -> Tensor:
        """The weight, in the shape that `dense` has it; it may be computed from others."""
        weight: Tensor = self.dense.weight  # type: ignore[assignment]  # all of them have one
        return weight

    @property
    def kind(self) -> type[nn.Module]:
        """What `kinds` calls it."""
        return kind_of(self.dense)

    def within(self, name: str) -> str:
        """The name of a parameter of the layer that takes its place, as seen from the owner."""
        return f"{self.projection}.{name}" if self.projection else name

    def of_weight(self, tensor: Tensor) -> Tensor:
        """Its part (out_features, in_features) of a tensor that has the shape of the owner's weight."""
        return tensor.t() if self.transposed else tensor[self.weight_rows]

    def of_bias(self, tensor: Tensor) -> Tensor:
        """A copy of its part (out_features,) of a tensor that has the shape of the owner's bias."""
        return tensor[self.bias_rows].clone()


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Which of `KINDS` a layer is of."""
    return next(kind for kind in KINDS if isinstance(module, kind))


def find(model: nn.Module, kinds: Kinds = DEFAULT) -> dict[str, LinearMap]:
    """Every linear map of `model` of these kinds, by the name of the sparse layer that may take its place."""
    found: dict[str, LinearMap] = {}
    for name, module in model.named_modules():
        for linear_map in of(module, kinds):
            found.setdefault(f"{name}.{linear_map.projection}".strip("."), linear_map)
    return found


def aliases(model: nn.Module, kinds: Kinds = DEFAULT) -> dict[str, str]:
    """The other names of linear maps that are at several places of `model` -> the names that `find` gives them."""
    first = {id(module): name for name, module in model.named_modules()}
    other: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name != first[id(module)]:
            for linear_map in of(module, kinds):
                other[f"{name}.{linear_map.projection}".strip(".")] = (
                    f"{first[id(module)]}.{linear_map.projection}".strip(".")
                )
    return other


def of(module: nn.Module, kinds: Kinds = DEFAULT) -> Iterator[LinearMap]:
    """The linear maps that go where `module` goes."""
    if isinstance(module, CONVOLUTIONS):
        if kind_of(module) in kinds:
            yield LinearMap(module, module)
        return
    if nn.Linear not in kinds:
        return
    if isinstance(module, nn.MultiheadAttention):
        if _computes_as_torch(module):
            yield from _of_attention(module)
    elif isinstance(module, nn.Linear):
        yield LinearMap(module, module)
    elif _is_conv1d(module) and (names := _parameter_names(module, "weight", "bias")):
        weight, bias = map(module.get_parameter, names)
        linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        conv1d = LinearMap(module, linear, weight=names[0], bias=names[1], transposed=True)
        linear.weight, linear.bias = _view(weight, conv1d.of_weight), bias
        adopt(linear, module)
        yield conv1d


def _of_attention(attention: nn.MultiheadAttention) -> Iterator[LinearMap]:
    size, bias = attention.embed_dim, attention.in_proj_bias is not None
    widths = {"q_proj": size, "k_proj": attention.kdim, "v_proj": attention.vdim}
    for number, (projection, width) in enumerate(widths.items()):
        rows = slice(number * size, (number + 1) * size)
        whole = (
            ("in_proj_weight", rows) if attention.in_proj_weight is not None else (f"{projection}_weight", EVERYTHING)
        )
        linear = nn.Linear(width, size, bias=bias, device="meta").train(attention.training)
        held = _parameter_names(attention, whole[0], *(["in_proj_bias"] if bias else []))
        linear_map = LinearMap(
            attention, linear, projection, held[0], whole[1], held[-1] if bias else "in_proj_bias", rows
        )
        linear.weight = _view(attention.get_parameter(linear_map.weight), linear_map.of_weight)
        if bias:
            linear.bias = _view(attention.get_parameter(linear_map.bias), linear_map.of_bias)
        yield linear_map
    weight, *_ = _parameter_names(attention.out_proj, "weight")
    yield LinearMap(attention, attention.out_proj, "out_proj", f"out_proj.{weight}", bias="out_proj.bias")


def _computes_as_torch(attention: nn.MultiheadAttention) -> bool:
    own_forward = type(attention).forward is not nn.MultiheadAttention.forward or "forward" in attention.__dict__
    parametrized = any(is_parametrized(module) for module in attention.modules())
    if own_forward or parametrized or not isinstance(attention.out_proj, nn.Linear):
        return False
    own = "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"
    names = [name for name in own if getattr(attention, name) is not None]
    return bool(_parameter_names(attention, *names) and _parameter_names(attention.out_proj, "weight"))


def _parameter_names(module: nn.Module, *names: str) -> list[str]:
    """Under which names the parameters of `module` are: others where torch.nn.utils.prune computes from them.

    None of them where one is computed in another way.
    """
    pruned = {name for name in names if f"{name}_mask" in module._buffers}
    found = [f"{name}_orig" if name in pruned else name for name in names]
    return found if all(name in module._parameters for name in found) else []


def pruned(module: nn.Module) -> str | None:
    """Which parameter of `module` torch.nn.utils.prune computes from another, None where there is none."""
    names = [name.removesuffix("_mask") for name in module._buffers if name.endswith("_mask")]
    return next((name for name in names if f"{name}_orig" in module._parameters), None)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is what GPT-2 has for its linear layers in Hugging Face's Transformers."""
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and type(module) is transformers.Conv1D


def _view(parameter: nn.Parameter, take: Callable[[Tensor], Tensor]) -> nn.Parameter:
    view = nn.Parameter(take(parameter.detach()), parameter.requires_grad)
    if parameter.grad is not None:
        view.grad = take(parameter.grad)
    return view
