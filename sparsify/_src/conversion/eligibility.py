"""Which models and layers can be made sparse, and why others cannot."""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from sparsify._src import kernels
from sparsify._src.conversion import adapters
from sparsify._src.conversion.linear_maps import (
    CONVOLUTIONS,
    DEPTHWISE,
    EVERYTHING,
    KINDS,
    Kinds,
    LinearMap,
    is_depthwise,
    pruned,
)
from sparsify._src.distributed import SHARDED
from sparsify._src.torch_private import has_hooks
from sparsify._src.training import holders


class Kind(Enum):
    """The kinds of reasons that code tells apart; users read the words."""

    FROZEN = auto()
    SKIPPED = auto()
    FULL = auto()
    NOT_NAMED = auto()
    NOT_HELD = auto()
    OTHER_MODEL = auto()
    SPLIT = auto()
    LOSING = auto()
    OTHER = auto()


class Reason(NamedTuple):
    """Why a linear map stays dense.

    words: for the user.
    kind: for code.
    """

    words: str
    kind: Kind = Kind.OTHER


FROZEN = Reason("it is frozen", Kind.FROZEN)
"""The reason of a layer whose weight does not train."""

NOT_HELD = Reason("the optimizer does not hold it", Kind.NOT_HELD)

HELD_NOTHING = Reason(NOT_HELD.words, Kind.OTHER_MODEL)
"""The same of an optimizer that holds nothing of the model."""

SPLIT = Reason(
    "the optimizer does not hold all of its attention, which is split: name all optimizers in one call", Kind.SPLIT
)

HARMLESS = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__constants__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__"),
    *("__orig_bases__", "__parameters__", "__type_params__", "__abstractmethods__", "_abc_impl", "_is_protocol"),
    *("__firstlineno__", "__static_attributes__", "__class_getitem__", "__init_subclass__", "__subclasshook__"),
    *("__init__", "__repr__", "reset_parameters", "extra_repr", "_get_name"),
}
"""What a subclass may define, and a sparse layer in its place does without: how it is made, and how it is shown."""


def check_module(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")


def refuse_model(model: nn.Module, kinds: Kinds) -> None:
    """Raise if `model` as a whole cannot be made sparse."""
    for name, module in model.named_modules():
        where = f" in layer {name!r}" if name else ""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(f"model must not be wrapped yet, got DistributedDataParallel{where}. Wrap it afterwards.")
        if any(kind.__name__ in ("FSDPModule", "FullyShardedDataParallel") for kind in type(module).__mro__):
            raise ValueError(f"model must not be sharded, got {type(module).__name__}{where}. {SHARDED}")
        if isinstance(module, tuple(kinds)) and isinstance(getattr(module, "weight", None), UninitializedParameter):
            raise ValueError(
                f"model must know its shapes, got an uninitialized {type(module).__name__}{where}. "
                "Run one forward pass first."
            )


def why_dense(
    model: nn.Module, maps: Mapping[str, LinearMap], optimizers: Sequence[object] | None
) -> dict[str, Reason]:
    """The reason of each linear map that cannot be sparse, whatever the density.

    Args:
        optimizers: that hold the parameters; None takes every trainable one as held.
    """
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    held = None if optimizers is None else {id(p) for p in holders.parameters(*optimizers)}
    not_held = NOT_HELD if held is None or any(id(p) in held for p in model.parameters()) else HELD_NOTHING
    inside = {
        id(part) for module in model.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()
    }

    of_adapters = adapters.why_dense(model)

    def why(linear_map: LinearMap) -> str | Reason | None:
        owner, linear = linear_map.owner, linear_map.dense
        if (adapter := of_adapters.get(owner)) == adapters.UNDER_PEFT and not linear_map.weight_now.requires_grad:
            return FROZEN
        if adapter is not None:
            return adapter
        if lost := next(filter(None, map(pruned, owner.modules())), None):
            return f'its pruning is not permanent yet: prune.remove(layer, "{lost}") makes it so'
        if linear is owner:
            if type(linear).forward is not linear_map.kind.forward or "forward" in linear.__dict__:
                return "it has a forward of its own"
            if "weight" not in linear._parameters or is_parametrized(linear):
                return "its weight is computed from others (parametrization, weight norm)"
            if id(linear) in inside:
                return "nn.MultiheadAttention reads its weight directly"
            if isinstance(linear, CONVOLUTIONS) and is_depthwise(linear):
                return DEPTHWISE
        for module in owner, linear:
            if own := _own_members(type(module)):
                return own
        if linear._parameters.keys() - {"weight", "bias"} or linear._buffers or linear._modules:
            return "it holds more than a weight and a bias"
        weight = owner.get_parameter(linear_map.weight)
        if type(weight) is not nn.Parameter:
            return f"its weight is a {type(weight).__name__}"
        if owners[id(weight)] > 1:
            return "its weight is tied to another module's"
        if linear_map.bias_rows != EVERYTHING and owners[id(getattr(owner, linear_map.bias))] > 1:
            return "its bias is tied to another module's"
        if not weight.requires_grad:
            return FROZEN
        if has_hooks(weight):
            return "its weight has gradient hooks"
        if weight.dtype not in kernels.SUPPORTED:
            return f"its dtype is {weight.dtype}"
        if not weight.numel():
            return "it has no weights"
        if held is not None and id(weight) not in held:
            return not_held
        if held is not None and any(p.requires_grad and id(p) not in held for p in _split_with(owner)):
            return SPLIT
        return None

    found = {name: why(linear_map) for name, linear_map in maps.items()}
    given = {name: reason for name, reason in found.items() if reason is not None}
    return {name: Reason(reason) if isinstance(reason, str) else reason for name, reason in given.items()}


def _own_members(kind: type) -> str | None:
    """The reason of a layer whose class has what a sparse layer in its place would lose; None where it has nothing."""
    known = next((base for base in (nn.MultiheadAttention, *KINDS) if issubclass(kind, base)), kind)
    own = {n: x for each in kind.__mro__ if each not in known.__mro__ for n, x in vars(each).items()}
    names = sorted(own.keys() - HARMLESS)
    if not names:
        return None
    what = "methods" if any(callable(own[name]) or hasattr(own[name], "__get__") for name in names) else "attributes"
    return f"its class {kind.__name__} has {what} of its own: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _split_with(owner: nn.Module) -> list[nn.Parameter]:
    """The parameters that new ones replace where a part of `owner` becomes sparse."""
    attention = isinstance(owner, nn.MultiheadAttention)
    named = owner._parameters.items() if attention else ()
    return [p for name, p in named if p is not None and name not in ("bias_k", "bias_v")]
