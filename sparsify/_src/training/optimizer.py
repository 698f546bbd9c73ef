"""`SparseOptimizer`: any torch optimizer whose step() also evolves the topology on schedule."""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import wrapt
from torch.optim import LBFGS, Optimizer

from sparsify._src.distributed import Ranks
from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.grown_values import GrownValues, Named
from sparsify._src.layers.map import SparseMap
from sparsify._src.swap import leaving_grad_mode
from sparsify._src.torch_private import find_parameters
from sparsify._src.training import evolver_state, holders, optimizer_loading, optimizer_state
from sparsify._src.training.arguments import check_optimizer
from sparsify._src.training.choices import Choices, OnEvolve
from sparsify._src.training.evolver import Evolver
from sparsify._src.training.optimizer_state import GrownState
from sparsify._src.training.record import Record
from sparsify._src.training.steps import Calls, changes_nothing, optimizers_that_step_this, tells_of_steps
from sparsify._src.written import Shown

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SparseOptimizer(wrapt.ObjectProxy, metaclass=Shown):  # type: ignore[type-arg]
    """A proxy of `optimizer` that evolves `layers` after the steps that are due.

    Everything the wrapped optimizer has is here; `isinstance(optimizer, torch.optim.Optimizer)` holds. Evolution
    hangs on the wrapped optimizer's step hooks, so stepping the original object evolves too, once.

    In distributed training (see `process_group`) every rank evolves alike, and `step()` raises RuntimeError on every
    rank, with nothing changed, where ranks turn out to differ or the algorithm changes the number of connections.

    Args:
        optimizer: holds the `values` of the layers among its parameters.
        layers: name -> SparseLinear.
        evolution: `SET(...)`, `Static()` or another `Evolution`.
        grown_values, grown_state, on_evolve, steps: as for `sparsify`.
        seed: of all random choices of evolution; None takes `torch.initial_seed()`.
        targets: name -> connections that the layer has in the end, where the algorithm prunes; as many as now where
            not given.
    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or the optimizer does not hold a layer's values.
    Example:
        >>> layer = SparseLinear(20, 10, density=0.2)
        >>> optimizer = SparseOptimizer(torch.optim.Adam(layer.parameters()), {"fc": layer}, SET(interval=2), seed=0)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     layer(torch.randn(8, 20)).square().mean().backward()
        ...     optimizer.step()
        >>> [record.step for record in optimizer.history], layer.nnz
        ([2, 4], 40)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, SparseMap],
        evolution: Evolution,
        *,
        grown_values: GrownValues | Named = "zero",
        grown_state: GrownState = "zero",
        on_evolve: OnEvolve | None = None,
        seed: int | None = None,
        steps: int | None = None,
        targets: Mapping[str, int] | None = None,
    ) -> None:
        choices = Choices(evolution, grown_values, grown_state, on_evolve, seed, steps)
        check_optimizer(optimizer)
        optimizer_state.check_elementwise(optimizer)
        self._self_wrap(Evolver(optimizer, layers, choices, targets or {}))

    def _self_wrap(self, evolver: Evolver) -> None:
        optimizer = evolver.optimizers.optimizer
        super().__init__(optimizer)
        self._self_evolver = evolver
        self._self_calls = Calls()
        with ExitStack() as undo:
            inside = holders.optimizers(optimizer)
            self._self_holds_others = len(inside) > 1
            for each in filter(tells_of_steps, inside):
                # A compiled step() calls these as they are: traced, evolution would fall into dozens of graphs.
                before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
                after.of_sparsify = True
                undo.callback(each.register_step_pre_hook(before).remove)
                undo.callback(each.register_step_post_hook(after).remove)
            self._self_hooks = undo.pop_all()
        evolver.take_charge()

    @property
    def evolution(self) -> Evolution:
        """The algorithm that evolves the topology."""
        return self._self_evolver.algorithm

    @property
    def process_group(self) -> "ProcessGroup | None":
        """The ranks that train replicas of the model, None where there is one only.

        By default those of torch.distributed's default group, where it is initialised. Set another group where only its
        ranks train replicas, or None where every rank trains a model of its own. A pickled optimizer forgets a group.
        """
        return self._self_evolver.ranks.group

    @process_group.setter
    def process_group(self, group: "ProcessGroup | None") -> None:
        self._self_evolver.ranks = Ranks(group)

    @property
    def history(self) -> list[Record]:
        """One record for each evolution so far."""
        return self._self_evolver.progress.history

    @property
    def explored(self) -> dict[str, float]:
        """The share of each layer's places that were ever active, an estimate (see `explored.Explored`)."""
        return {name: explored.share for name, explored in self._self_evolver.progress.explored.items()}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step the wrapped optimizer; evolution follows where it is due."""
        # Defined here because learning-rate schedulers replace `optimizer.step`: theirs then stays on the proxy.
        if self._self_holds_others:
            return self._self_as_one_step(self.__wrapped__.step, *args, **kwargs)
        return self.__wrapped__.step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # wrapt has it
        if self._self_holds_others and isinstance(value, MethodType) and value.__self__ is self.__wrapped__:
            return partial(self._self_as_one_step, value)  # SAM steps in second_step()
        return value

    def _self_as_one_step(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of an optimizer that holds others; however often these step in it, it counts as one step."""
        calls = self._self_calls
        if calls.around:
            return method(*args, **kwargs)
        calls.around, calls.stepped = True, False
        try:
            if "step" in getattr(method, "__name__", ""):  # it may use what is kept before an optimizer inside steps
                self._self_evolver.begin_step()
            result = method(*args, **kwargs)
        finally:
            calls.around = False
        if calls.stepped:
            self._self_evolver.end_step()
        return result

    @leaving_grad_mode
    def evolve(self) -> Record:
        """Drop and grow now, whatever the schedule says. In distributed training: on every rank.

        All layers evolve that have trained since the last evolution; where none has, all that can train: a layer that
        is frozen, in no param group, or has a learning rate of 0 stays as it is.

        Returns:
            the record that is appended to `history`.
        Raises:
            TypeError: the optimizer holds state that is not elementwise.
            ValueError: a rule needs the gradient of a backward pass, and there is none; or a rule of the user's broke
                its contract. Nothing is changed.
            RuntimeError: ranks differ. Nothing is changed.
        """
        return self._self_evolver.evolve()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict and, under "sparsify", what evolution needs to resume bit for bit."""
        self._self_evolver.make_whole()
        return optimizer_loading.joined(self.__wrapped__, evolver_state.state_dict(self._self_evolver))

    @leaving_grad_mode
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; the model's own state dict may be loaded before or after.

        Raises:
            ValueError: it is not a SparseOptimizer's, or of other layers, or corrupt; nothing is changed.
        """
        evolver, optimizer = self._self_evolver, self.__wrapped__
        own, plain = optimizer_loading.split(state_dict)
        evolver_state.check_state_dict(evolver, own)
        if optimizer_loading.is_standard(optimizer):
            lengths = {values: own["topology"][name][0] for name, values in evolver.parameters.items()}
            optimizer_loading.check_state_dict(optimizer, lengths, plain)
        evolver.load_state_dict(own, plain)

    def _self_go_on(
        self, layers: Mapping[str, SparseMap], choices: Choices, targets: Mapping[str, int], undo: ExitStack
    ) -> None:
        """Evolve these layers by another algorithm, as the same object: schedulers and trainers hold it."""
        old, new = self._self_evolver, Evolver(self.__wrapped__, layers, choices, targets)
        new.take_after(old)
        undo.callback(self._self_follow, old)
        self._self_follow(new)

    def _self_follow(self, evolver: Evolver) -> None:
        self._self_evolver.gradients.record(False)
        self._self_evolver = evolver
        evolver.take_charge()

    def _self_unhook(self) -> None:
        """Let the wrapped optimizer step as it did before it was wrapped."""
        self._self_hooks.close()
        self._self_evolver.gradients.record(False)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        calls, evolver = self._self_calls, self._self_evolver
        calls.in_vain = not optimizer.state and changes_nothing(optimizer)
        if evolver.progress.due:
            evolver.optimizers.notice(optimizers_that_step_this())
        evolver.begin_step()
        calls.begin()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        calls = self._self_calls
        del calls.running[-1:]
        found_inf = getattr(optimizer, "found_inf", None)  # a fused optimizer under GradScaler steps in vain
        in_vain = calls.in_vain or (found_inf is not None and found_inf.item())
        if calls.running or in_vain:
            return
        if calls.around:
            calls.stepped = True
            self._self_evolver.inner_step()
        else:
            self._self_evolver.end_step()

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseOptimizer":
        return _rebuild(copy.deepcopy(self._self_evolver, memo))

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., "SparseOptimizer"], tuple[Evolver]]:
        return _rebuild, (self._self_evolver,)

    def __repr__(self) -> str:
        return f"{self.__wrapped__!r}\n{self._self_evolver.remarks.summary}"

    __str__ = __repr__  # the proxy's is that of the wrapped optimizer


def _rebuild(evolver: Evolver) -> SparseOptimizer:
    optimizer = evolver.optimizers.optimizer
    if isinstance(optimizer, LBFGS):
        find_parameters(optimizer)
    proxy = SparseOptimizer.__new__(SparseOptimizer)
    proxy._self_wrap(evolver)
    return proxy
