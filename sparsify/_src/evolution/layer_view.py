"""What the rules of an evolution may see of a layer, and how one says that it reads gradients."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from sparsify._src.evolution import dense_gradients
from sparsify._src.kernels.window import Window
from sparsify._src.ready_made import Kind, check_rule
from sparsify._src.topology import Shape
from sparsify._src.written import as_typed, written

Rule = TypeVar("Rule", bound=Callable[..., object])

Passes = Sequence[tuple[Tensor, Tensor]]
"""(gradient of the output (batch, out_features), input (batch, in_features)) of each of some backward passes.

Of a convolution (batch, out_channels, *out_size) and (batch, in_channels, *size).
"""


def alone(tensor: Tensor) -> Tensor:
    """Return `tensor` itself: the sum over a single rank."""
    return tensor


@dataclass(frozen=True)
class LayerView:
    """A layer in the middle of an evolution. Rules read it and change nothing.

    name: of the layer in the model.
    shape: (out_features, in_features), or of a convolution (out_channels, in_channels / groups * taps).
    flat: its topology, sorted flat indices `row * in_features + col`, (nnz,) int64.
    values: of the connections, (nnz,).
    survives: which connections stay, (nnz,) bool; all of them while drop rules score.
    generator: on the CPU, of this evolution of this layer.
    gradient: of `values`, (nnz,). Where no backward pass reached the layer there is none, and reading it raises: a rule
        that reads it is marked with `needing_gradient`, and asked only where there is one. `has_gradient` tells.
    passes: (gradient of the output (batch, out_features), input (batch, in_features)) of each backward pass that made
        `gradient`, this rank's in distributed training. They are kept where the growth rule is marked with
        `needing_gradient`; reading them raises where none were.
    sum_over_ranks: adds up, in place, a tensor that each rank has its own of, such as what a rule computed from
        `passes`: rules must choose alike on every rank. `values` and `gradient` are the same on all ranks already.
    spared: which connections must stay whatever their scores, (nnz,) bool; None for none. Scopes see it.
    window: how a convolution moves over its input; None of a linear layer. `dense_gradient` and `gradient_at` know it.

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
    window: Window | None = None

    def dense_gradient(self, rows: slice) -> Tensor:
        """Rows of the gradient of the dense weight, (rows, in_features), whatever the layer: summed over the passes.

        This rank's, at least float32, NaN taken for 0. Memory: these rows.

        Args:
            rows: with a beginning and an end, as in slice(0, 64).
        Example:
            >>> flat, alive = torch.tensor([2]), torch.ones(1, dtype=torch.bool)
            >>> passes = [(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 1.0]]))]
            >>> layer = LayerView("fc", (2, 2), flat, torch.ones(1), alive, torch.Generator(), passes=passes)
            >>> layer.dense_gradient(slice(1, 2))
            tensor([[-6., -3.]])
        """
        return dense_gradients.of_rows(self, rows)

    def gradient_at(self, flat: Tensor) -> Tensor:
        """The gradient of the dense weight at these places, (len(flat),): time and memory are those of the places.

        Args:
            flat: sorted, unique flat indices.
        Example:
            >>> flat, alive = torch.tensor([2]), torch.ones(1, dtype=torch.bool)
            >>> passes = [(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 1.0]]))]
            >>> layer = LayerView("fc", (2, 2), flat, torch.ones(1), alive, torch.Generator(), passes=passes)
            >>> layer.gradient_at(torch.tensor([0, 3]))
            tensor([ 2., -3.])
        """
        return dense_gradients.at_places(self, flat)

    @property
    def free(self) -> int:
        """How many places are inactive."""
        return self.shape[0] * self.shape[1] - len(self.flat)

    @property
    def has_gradient(self) -> bool:
        """Whether a backward pass reached the layer, so that there is a `gradient`."""
        return self.gradient is not None

    @property
    def droppable(self) -> int:
        """How many connections may go: all that are not spared."""
        return len(self.flat) - (0 if self.spared is None else int(self.spared.sum()))


class _IfThere:
    """A field of a `LayerView` that raises ValueError where a rule reads it and it was not given.

    dataclasses reads all fields in `replace`, and in what it writes into this module: these find it as it is.
    """

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what

    def __get__(self, layer: LayerView | None, _: type) -> Any:
        if layer is None:
            raise AttributeError(self.name)
        value = vars(layer)[self.name]
        reader = sys._getframe(1).f_globals.get("__name__")
        if (value is not None and (self.name != "passes" or len(value))) or reader in ("dataclasses", __name__):
            return value
        rule = vars(layer).get("asked")
        if rule is not None and needs_gradient(rule):
            raise ValueError(
                f"growth by gradient needs a backward pass, got none kept for layer {layer.name!r}. Passes are kept "
                "for a growth rule that is marked with needing_gradient, before the evolutions of the schedule; to "
                "evolve by hand, give the algorithm interval=None."
            )
        name = "a rule" if rule is None else written(rule)
        raise ValueError(
            f"{name} must be marked with needing_gradient to read layer.{self.name}, got {self.what} in layer "
            f"{layer.name!r}. Write @needing_gradient above it (from sparsify.evolution import needing_gradient): "
            "layers that no backward pass reached are left as they are then. A rule that can do without asks "
            "layer.has_gradient first."
        )

    def __set__(self, layer: LayerView, value: object) -> None:
        vars(layer)[self.name] = value


for _field in (_IfThere("gradient", "no gradient"), _IfThere("passes", "no recorded backward pass")):
    setattr(LayerView, _field.name, _field)


def seen_by(rule: object, layer: LayerView) -> LayerView:
    """The layer as `rule` sees it, which errors name where it reads gradients that are not there."""
    seen = copy.copy(layer)
    vars(seen)["asked"] = rule
    return seen


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
    kind: of both.
    """

    rule: Callable[..., Tensor]
    kind: ClassVar[Kind]
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_rule("rule", self.rule, self.kind)

    @property
    def needs_gradient(self) -> bool:
        """Whether the other rule does."""
        return needs_gradient(self.rule)
