"""What the rules of an evolution may see of a layer, and how one says that it reads gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sparsify._src.checks import check_callable
from sparsify._src.topology import Shape
from sparsify._src.written import as_typed

Rule = TypeVar("Rule", bound=Callable[..., object])

Passes = Sequence[tuple[Tensor, Tensor]]
"""(gradient of the output (batch, out_features), input (batch, in_features)) of each of some backward passes."""


def alone(tensor: Tensor) -> Tensor:
    """Return `tensor` itself: the sum over a single rank."""
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

    Example:
        To try a rule, make one by hand: three connections in a layer with room for six.

        >>> flat, values = torch.tensor([0, 2, 5]), torch.tensor([0.5, -3.0, -0.25])
        >>> layer = LayerView("fc", (2, 3), flat, values, torch.ones(3, dtype=torch.bool), torch.Generator())
        >>> layer.free
        3
        >>> uniformly(layer, 3)
        tensor([1, 3, 4])
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
    """Mark a drop or growth rule that reads gradients: a layer that no backward pass reached then stays as it is.

    Example:
        >>> @needing_gradient
        ... def idle(layer):
        ...     return layer.gradient.abs()
        >>> Evolution(interval=100, drop=idle)
        Evolution(interval=100, drop=idle)
    """
    rule.needs_gradient = True  # type: ignore[attr-defined]
    return rule


def needs_gradient(rule: object) -> bool:
    """Whether a rule is marked so."""
    return bool(getattr(rule, "needs_gradient", False))


@dataclass(frozen=True, repr=False)
class AroundRule:
    """A rule that calls another, and needs a gradient if that does.

    rule: the other.
    """

    rule: Callable[..., Tensor]
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_callable("rule", self.rule)

    @property
    def needs_gradient(self) -> bool:
        """Whether the other rule does."""
        return needs_gradient(self.rule)
