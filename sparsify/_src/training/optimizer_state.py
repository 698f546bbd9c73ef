"""Moves and resets elementwise optimizer buffers: those of a weight's shape, one entry for each connection."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer, Rprop

from sparsify._src.checks import described, is_plain_vector
from sparsify._src.evolution.update import Update
from sparsify._src.native import library
from sparsify._src.swap import Change
from sparsify._src.torch_private import forget_size, version
from sparsify._src.training import holders
from sparsify._src.training.holders import Buffer
from sparsify._src.vectors import fingerprint

GrownState = Literal["zero", "mean"] | Callable[[str, Tensor, int], Tensor]
"""What connections that have just grown find in a buffer: a word, or (name of the buffer, what survivors have there,
how many have grown) -> (grown,)."""

SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "variance"}
"""Buffers of squared or absolute gradients, by the names that torch.optim gives them."""

WEIGHTS = {
    *("ax", "z", "x0", "p0", "old_p", "backup_params"),
    *("lookahead_slow_buff", "slow_param", "slow_params", "slow_buffer", "slow_weights", "slow"),
}
"""Buffers that hold weights: averages, first or slow ones, those before a perturbation. The names of ASGD,
schedule-free, MADGRAD, Prodigy, SAM and Lookahead."""

MATRICES = "it treats a weight as a matrix, and a sparse layer's values are a vector"
UNSUPPORTED = {
    "Muon": MATRICES,
    "Shampoo": MATRICES,
    "ScalableShampoo": MATRICES,
    "DistributedShampoo": MATRICES,
    "SOAP": MATRICES,
    "Kron": MATRICES,
    "ZeroRedundancyOptimizer": "it holds the state of some layers only, in an optimizer of its own",
    "SparseAdam": "it takes sparse gradients, and the gradient of a sparse layer's values is a dense vector",
    **dict.fromkeys(("Adahessian", "AdaHessian"), "it keeps an estimate of second derivatives outside its state"),
}
"""By class name, because torch's own Muon is new and there are others of that name."""


def check_elementwise(optimizer: object) -> None:
    """Raise TypeError if `optimizer`, or one inside it, cannot train a vector of connections."""
    for each in holders.optimizers(optimizer):
        for kind in type(each).__mro__:
            if kind.__name__ in UNSUPPORTED:
                raise TypeError(
                    f"optimizer must work elementwise, got {kind.__name__}: {UNSUPPORTED[kind.__name__]}. "
                    "Use SGD, Adam or another elementwise optimizer for the Linear layers."
                )


class Kept:
    """Every tensor that an optimizer keeps for its parameters, and those that optimizers in or around it keep.

    Args:
        roots: the optimizer, and others such as one that holds it. What they make after this call is not here.
    Attributes:
        optimizers: all that there are.
        buffers: the tensors that they keep for each parameter.
        unknown: those of which it cannot be told for which parameter they are.
    """

    def __init__(self, *roots: object) -> None:
        self.optimizers = holders.optimizers(*roots)
        self.versions: dict[int, int] = {}
        self.buffers: dict[Tensor, list[Buffer]] = defaultdict(list)
        self.unknown: list[Buffer] = []
        for buffer in holders.buffers(*roots):
            self.versions[id(buffer.tensor)] = version(buffer.tensor)
            (self.unknown if buffer.parameter is None else self.buffers[buffer.parameter]).append(buffer)

    def of(self, parameter: Tensor) -> list[Buffer]:
        """The buffers of `parameter`."""
        return self.buffers.get(parameter, [])

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise TypeError unless every buffer of these parameters is elementwise or a number, and known to be theirs.

        Args:
            parameters: layer name -> its weight, or its values.
        """
        kind = type(self.optimizers[0]).__name__
        for layer, parameter in parameters.items():
            for tensor, _, key in self.of(parameter):
                if tensor.dim() and tensor.numel() != 1 and tensor.shape != parameter.shape:
                    raise TypeError(
                        f"optimizer must hold elementwise state, got {kind} with {key!r} of shape "
                        f"{tuple(tensor.shape)} for a weight of {tuple(parameter.shape)} in layer {layer!r}. "
                        "Leave the layer dense with skip=, or choose another optimizer."
                    )
            for tensor, _, key in self.unknown:
                if tensor.shape == parameter.shape and tensor.numel() > 1:
                    raise TypeError(
                        f"optimizer must keep under a weight what belongs to it, got {kind} with {key!r} of shape "
                        f"{tuple(tensor.shape)}, as that of layer {layer!r}, in a place of its own. Keep it in "
                        "optimizer.state[parameter], or in a list in the order of param_groups."
                    )

    def has_any(self, parameter: Tensor) -> bool:
        """Whether there is any state of `parameter`."""
        return bool(self.of(parameter)) or any(isinstance(each, LBFGS) and each.state for each in self.optimizers)

    def fits(self, parameter: Tensor) -> bool:
        """Whether every elementwise buffer of `parameter` has its length."""
        return all(x.tensor.numel() == 1 or x.tensor.shape == parameter.shape for x in self.of(parameter))

    def digest(self, parameter: Tensor) -> str:
        """A short hash of the buffers of `parameter`."""
        return fingerprint(*(buffer.tensor for buffer in self.of(parameter)))

    @torch.no_grad()
    def prepare_moves(
        self, values: nn.Parameter, update: Update, grown: Tensor, grown_state: GrownState = "zero"
    ) -> Iterator[Change]:
        """Prepare to reorder every buffer of `values` to its new topology.

        Entries of new connections start as the optimizer would start them: at zero, but for buffers that start
        elsewhere (Rprop's step size, Adagrad's accumulator) or hold weights (ASGD's average, Lookahead's slow weights).

        Args:
            grown: values of the grown connections.
            grown_state: "mean": second moments of new connections take the mean of the survivors' instead; a function
                says it itself.
        Raises:
            ValueError: it gives something else than a number for each.
        """
        for each in self.optimizers:
            if isinstance(each, LBFGS) and group_of(each, values) is not None:
                yield partial(_clear, each)
        for tensor, _, key in self.of(values):
            if tensor.shape == (update.old_nnz,):
                if callable(grown_state):
                    fresh = _checked(grown_state(key, tensor[update.kept], len(grown)), len(grown), tensor, key)
                elif grown_state == "mean" and key in SECOND_MOMENTS and len(update.kept):
                    fresh = tensor[update.kept].mean().expand(len(grown))
                else:
                    fresh = self._at_first(values, key, grown)
                yield partial(library.overwrite, tensor, update.move(tensor, fresh.to(tensor)))

    @torch.no_grad()
    def prepare_afresh(self, parameter: nn.Parameter, values: Tensor | None = None) -> Iterator[Change]:
        """Prepare to start the state of `parameter` afresh. LBFGS has one history for all parameters.

        What an optimizer makes in its first step is taken away, and made again; what is there from the beginning, and
        what those around it keep, is filled as it was at first.

        Args:
            values: those that the parameter will have; None: as now.
        """
        values = parameter.detach() if values is None else values
        made_again: set[int] = set()
        for each in self.optimizers:
            if (group := group_of(each, parameter)) is None:
                continue
            if isinstance(each, LBFGS):
                yield partial(_clear, each)
            elif isinstance(each, Optimizer) and len(holders.optimizers(each)) == 1 and not isinstance(each, Adagrad):
                entry = each.state.get(parameter, {})
                made_again |= {id(value) for value in entry.values()}
                momentum = entry.get("momentum_buffer")
                zero = group.get("fused") or not group.get("dampening")  # fused, it takes none with and without
                if isinstance(each, SGD) and isinstance(momentum, Tensor) and zero:
                    zeros = momentum.new_zeros(len(values))
                    yield partial(each.state.__setitem__, parameter, {"momentum_buffer": zeros})
                else:
                    yield partial(each.state.pop, parameter, None)
        yield from self.prepare_fill(
            parameter, values, [x for x in self.of(parameter) if id(x.tensor) not in made_again]
        )

    @torch.no_grad()
    def prepare_fill(self, parameter: nn.Parameter, values: Tensor, buffers: Sequence[Buffer]) -> Iterator[Change]:
        """Prepare to fill `buffers` of `parameter` as they were at first.

        Args:
            values: those that the parameter will have.
        """
        for tensor, _, key in buffers:
            if key == "step":
                yield partial(library.overwrite, tensor, torch.zeros_like(tensor))
            elif tensor.dim() == 1:
                yield partial(library.overwrite, tensor, self._at_first(parameter, key, values).to(tensor))

    def _at_first(self, parameter: Tensor, key: str, values: Tensor) -> Tensor:
        """What a buffer of this name holds at first for new connections with these values."""
        if key in WEIGHTS:
            return values
        for each in self.optimizers:
            group = group_of(each, parameter)
            if group is not None and isinstance(each, Rprop) and key == "step_size":
                return torch.full_like(values, float(group["lr"]))
            if group is not None and isinstance(each, Adagrad) and key == "sum":
                return torch.full_like(values, group["initial_accumulator_value"])
        return torch.zeros_like(values)


def group_of(optimizer: Any, parameter: Tensor) -> dict[str, Any] | None:
    """The param group of `optimizer` that holds `parameter`."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return next((group for group in groups if any(parameter is p for p in group["params"])), None)


def check_grown_state(grown_state: object) -> None:
    """Raise ValueError unless it is a word that we know, or a function."""
    if not callable(grown_state) and grown_state not in ("zero", "mean"):
        raise ValueError(f'grown_state must be "zero", "mean" or a function, got {grown_state!r}.')


def _checked(fresh: object, count: int, tensor: Tensor, key: str) -> Tensor:
    if not is_plain_vector(fresh, count, tensor.device) or not fresh.is_floating_point():
        raise ValueError(
            f"grown_state must give {count} floating-point numbers on {tensor.device}, got {described(fresh)} for the "
            f"buffer {key!r}."
        )
    return fresh


def _clear(optimizer: LBFGS) -> None:
    optimizer.state.clear()
    forget_size(optimizer)
