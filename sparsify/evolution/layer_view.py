"""What the rules of an evolution may see of a layer, and what all checks of rules share."""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from sparsify.topology import Shape

Rule = TypeVar("Rule", bound=Callable[..., object])


Passes = Sequence[tuple[Tensor, Tensor]]
"""(gradient of the output (batch, out_features), input (batch, in_features)) of each of some backward passes."""


def alone(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


@dataclass(frozen=True)
class LayerView:
    """A layer in the middle of an evolution. Rules read it and change nothing.

    name: of the layer in the model.
    shape: (out_features, in_features).
    flat: its topology, sorted flat indices `row * in_features + col`, (nnz,) int64.
    values: of the connections, (nnz,).
    survives: which connections stay, (nnz,) bool; all of them while drop rules score.
    generator: on the CPU, of this evolution of this layer.
    gradient: of `values`, (nnz,); None where no backward pass reached the layer.
    passes: (gradient of the output (batch, out_features), input (batch, in_features)) of each backward pass that made
        `gradient`; only where the growth rule is `needing_gradient`. In distributed training this rank's.
    sum_over_ranks: adds up, in place, a tensor that each rank has its own of, such as what a rule computed from
        `passes`: rules must choose alike on every rank. `values` and `gradient` are the same on all ranks already.
    spared: which connections must stay whatever their scores, (nnz,) bool; None for none. Scopes see it.
    """

    name: str
    shape: Shape
    flat: Tensor
    values: Tensor
    survives: Tensor
    generator: torch.Generator
    gradient: Tensor | None = None
    passes: Passes = ()
    sum_over_ranks: Callable[[Tensor], Tensor] = alone
    spared: Tensor | None = None

    @property
    def free(self) -> int:
        """How many places are inactive."""
        return self.shape[0] * self.shape[1] - len(self.flat)

    @property
    def droppable(self) -> int:
        """How many connections may go: all that are not spared."""
        return len(self.flat) - (0 if self.spared is None else int(self.spared.sum()))


def needing_gradient(rule: Rule) -> Rule:
    """Mark a drop or growth rule that reads gradients: a layer that no backward pass reached then stays as it is."""
    rule.needs_gradient = True  # type: ignore[attr-defined]
    return rule


def needs_gradient(rule: object) -> bool:
    """Whether a rule is marked so."""
    return bool(getattr(rule, "needs_gradient", False))


def is_plain_vector(value: object, length: int | None, device: torch.device) -> TypeGuard[Tensor]:
    """Whether `value` is a tensor (length,) on `device`, in memory that compiled code may read; None for any length."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized)
        and value.device == device
        and value.dim() == 1
        and length in (None, len(value))
        and (not len(value) or value.data_ptr() != 0)  # storage that was given back, or never there
    )


def described(value: object) -> str:
    """What someone's rule gave, for an error: `torch.int64 (3,) on cpu`."""
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    kinds = [] if type(value) in (Tensor, nn.Parameter) else [type(value).__name__]
    kinds += [] if value.layout is torch.strided else [str(value.layout)]
    shape = "(nested)" if value.is_nested else tuple(value.shape)
    return " ".join([*kinds, f"{value.dtype} {shape} on {value.device}"])


def check_callable(argument: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{argument} must be callable, got {value!r}. Pass the function itself, not its name.")


def check_count(argument: str, count: object, least: int, unit: str = "") -> None:
    """Raise unless `count` is a whole number, at least `least`."""
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{argument} must be a whole number{unit}, got {count!r}.")
    if count < least:
        raise ValueError(f"{argument} must be at least {least}, got {count}.")


def check_share(argument: str, share: object, where: str = "") -> float:
    """Return `share` as a float, or raise if it is not a number in [0, 1]."""
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"{argument} must be a number in [0, 1], got {share!r}{where}.")
    number: Any = share
    if not 0 <= number <= 1:
        hint = f" For {float(number):g} % pass {float(number) / 100:g}." if 1 < number <= 100 else ""
        raise ValueError(f"{argument} must be in [0, 1], got {share}{where}.{hint}")
    return float(number)
