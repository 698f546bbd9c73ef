"""How many bytes training holds beside a weight: its gradient, and what its optimizer keeps for it."""

import copy
import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsify._src.training import holders
from sparsify._src.training.optimizer_state import Kept, group_of

TINY = (3, 5, 7, 11, 13, 17)
"""The sides of a weight on which an optimizer is tried out; primes, so that its state's shapes tell which is which."""

Kind = list[tuple[tuple[int, ...], int]]
"""Of each tensor that an optimizer keeps for a tiny weight: its shape, and the bytes of an element."""


class TrainingBytes:
    """Tells the bytes that training holds beside a weight.

    What an optimizer keeps for a weight already is counted as it is. Where it has kept nothing yet, another of its
    class with the same options steps once on a tiny weight, and what it keeps then is counted. The optimizer itself
    is only read.

    Args:
        optimizers: that train the model.
        as_it_is: whether nothing is tried out: what is kept now counts, and nothing else.
    Attributes:
        unknown: class names of optimizers of which it could not be found out what they keep.
    Raises:
        TypeError: one of them is none.
    """

    def __init__(self, optimizers: Sequence[Any], as_it_is: bool = False) -> None:
        for each in optimizers:
            if not holders.is_optimizer(each):
                raise TypeError(
                    f"optimizer must be a torch.optim.Optimizer, got {type(each).__name__}. Without one: None."
                )
        self._holder = {id(p): each for each in optimizers for p in holders.parameters(each)}
        self._inside = {id(each): holders.optimizers(each) for each in optimizers}
        self._innermost = {
            number: [each for each in inside if len(holders.optimizers(each)) == 1]
            for number, inside in self._inside.items()
        }
        self._kept = Kept(*optimizers) if optimizers else None
        self._as_it_is = as_it_is
        self._tried: dict[tuple[int, int, torch.dtype, torch.device], Kind | None] = {}
        self.unknown: set[str] = set()

    def beside(self, weight: Tensor, shape: tuple[int, ...] | None = None) -> int | None:
        """Bytes of gradient and state beside `weight`, None where the optimizer's cannot be found out.

        Args:
            shape: that it will have, (nnz,) where it becomes sparse; as it is where not given.
        """
        shape = tuple(weight.shape) if shape is None else shape
        if not weight.requires_grad:
            return 0
        gradient = math.prod(shape) * weight.element_size()
        optimizer = self._holder.get(id(weight))
        if optimizer is None or self._kept is None:
            return gradient
        kept = self._kept.of(weight)
        inside, innermost = self._inside[id(optimizer)], self._innermost[id(optimizer)]
        state: int | None = None
        if any(isinstance(each, torch.optim.LBFGS) for each in inside):
            pass  # it keeps vectors of all parameters together
        elif self._as_it_is or all(getattr(each, "state", {}).get(weight) for each in innermost):
            elementwise = [math.prod(shape) * x.tensor.element_size() for x in kept if x.tensor.shape == weight.shape]
            state = sum(elementwise) + sum(x.tensor.nbytes for x in kept if x.tensor.shape != weight.shape)
        elif len(inside) == 1:
            state = self._of_a_new_one(optimizer, weight, shape)
        if state is None:
            self.unknown.add(type(optimizer).__name__)
            return None
        return gradient + state

    def _of_a_new_one(self, optimizer: Any, weight: Tensor, shape: tuple[int, ...]) -> int | None:
        """Bytes that `optimizer` will keep for a weight of `shape`, for which it keeps nothing yet."""
        group = group_of(optimizer, weight)
        if group is None or len(shape) > len(TINY):
            return None
        device = torch.device("cpu") if weight.is_meta else weight.device
        key = id(group), len(shape), weight.dtype, device
        if key not in self._tried:
            tiny = nn.Parameter(torch.zeros(TINY[: len(shape)], dtype=weight.dtype, device=device))
            self._tried[key] = tried(optimizer, group, tiny)
        kinds = self._tried[key]
        if kinds is None:
            return None
        sides = dict(zip(TINY, shape, strict=False)) | {1: 1}
        if any(side not in sides for kept, _ in kinds for side in kept):
            return None
        return sum(math.prod(sides[side] for side in kept) * size for kept, size in kinds)


def tried(optimizer: Any, group: dict[str, Any], weight: nn.Parameter) -> Kind | None:
    """What a new optimizer of this class keeps for `weight` after a step; None where it cannot be made, or step.

    Args:
        group: the param group of `optimizer` whose options it gets.
    """
    kind, weight.grad = type(optimizer), torch.ones_like(weight)
    devices = [weight.device] if weight.is_cuda else []
    try:
        taken = inspect.signature(kind).parameters
        options = copy.deepcopy({name: x for name, x in group.items() if name not in ("params", "param_names")})
        arguments = {name: x for name, x in options.items() if name in taken}
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")
            new = kind([{**options, "params": [weight]}], **arguments)
            new.step()
        return [(tuple(x.tensor.shape), x.tensor.element_size()) for x in Kept(new).of(weight)]
    except Exception:  # whatever someone's optimizer may raise that is made otherwise, or asks more of a step
        return None
