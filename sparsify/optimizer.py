"""`SparseOptimizer`: any torch optimizer whose step() also evolves the topology on schedule."""

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import wrapt
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from sparsify import optimizer_state, topology
from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.evolve import evolve
from sparsify.evolution.growth import GrowthRule
from sparsify.evolution.rewire import rewire
from sparsify.linear import SparseLinear
from sparsify.optimizer_state import GrownState
from sparsify.topology import Shape


class Record(NamedTuple):
    """What one evolution did: after which optimizer step, and connections dropped and grown in each layer."""

    step: int
    drop_fraction: float
    dropped: dict[str, int]
    grown: dict[str, int]


class SparseOptimizer(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """A proxy of `optimizer` that evolves `layers` after the steps that are due.

    Everything the wrapped optimizer has is here; `isinstance(optimizer, torch.optim.Optimizer)` holds. Evolution
    hangs on the wrapped optimizer's step hooks, so stepping the original object evolves too, once.

    Args:
        optimizer: holds the `values` of the layers among its parameters.
        layers: name -> SparseLinear.
        evolution: `SET(...)`, `Static()` or another `Evolution`.
        grown_state: what regrown connections find in elementwise optimizer buffers: "zero", or "mean" (second
            moments take the mean of the survivors').
        seed: of all random choices of evolution; None takes `torch.initial_seed()`.
    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or the optimizer does not hold a layer's values.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, SparseLinear],
        evolution: Evolution,
        *,
        grown_state: GrownState = "zero",
        seed: int | None = None,
    ) -> None:
        check_arguments(optimizer, evolution, grown_state, seed)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in layers.items():
            if id(layer.values) not in held:
                raise ValueError(f"optimizer must hold the values of every sparse layer, got none of layer {name!r}.")
        super().__init__(optimizer)
        self._self_layers = dict(layers)
        self._self_evolution = evolution
        self._self_grown_state = grown_state
        self._self_seed = torch.initial_seed() if seed is None else seed
        self._self_step = 0
        self._self_evolutions = 0
        self._self_history: list[Record] = []
        # The topology that the optimizer's buffers belong to: a layer's version, and after loading a fingerprint.
        self._self_versions = {name: layer.topology_version for name, layer in layers.items()}
        self._self_fingerprints: dict[str, str] = {}
        self._self_depth = 0
        with ExitStack() as undo:
            undo.callback(optimizer.register_step_pre_hook(self._before_step).remove)
            optimizer.register_step_post_hook(self._after_step)
            undo.pop_all()

    @property
    def evolution(self) -> Evolution:
        """The algorithm that evolves the topology."""
        return self._self_evolution

    @property
    def history(self) -> list[Record]:
        """One record for each evolution so far."""
        return self._self_history

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step the wrapped optimizer; evolution follows where it is due."""
        # Defined here because learning-rate schedulers replace `optimizer.step`: theirs then stays on the proxy.
        self._self_depth = 0
        return self.__wrapped__.step(*args, **kwargs)

    def evolve(self) -> Record:
        """Drop and grow all sparse layers now, whatever the schedule says.

        Returns:
            the record that is appended to `history`.
        Raises:
            TypeError: the optimizer holds state that is not elementwise; nothing is changed.
        """
        self._align()
        algorithm, optimizer = self._self_evolution, self.__wrapped__
        fraction = algorithm.fraction(self._self_step)
        updates = {}
        for name, layer in self._self_layers.items():
            optimizer_state.check_elementwise(optimizer, layer.values, name)
            generator = topology.generator(self._self_seed, "evolution", self._self_evolutions, name)
            update = evolve(
                layer.flat(),
                layer.values.detach(),
                layer.shape,
                fraction,
                drop=algorithm.drop,
                grow=partial(_grow, algorithm.grow, generator),
            )
            grown = algorithm.grown_values(update.grown, layer.shape, layer.nnz, generator)
            updates[name] = update, grown
        for name, (update, grown) in updates.items():
            rewire(self._self_layers[name], update, grown, optimizer, self._self_grown_state)
            self._self_versions[name] = self._self_layers[name].topology_version
        counts = {name: len(grown) for name, (_, grown) in updates.items()}
        record = Record(self._self_step, fraction, dropped=counts, grown=dict(counts))
        self._self_history.append(record)
        self._self_evolutions += 1
        return record

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict and, under "sparsify", what evolution needs to resume bit for bit."""
        own = {
            "step": self._self_step,
            "evolutions": self._self_evolutions,
            "seed": self._self_seed,
            "history": [record._asdict() for record in self._self_history],
            "topology": {n: topology.fingerprint(layer.crow, layer.col) for n, layer in self._self_layers.items()},
        }
        return {**self.__wrapped__.state_dict(), "sparsify": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; the model's own state dict may be loaded before or after.

        Raises:
            ValueError: it is not a SparseOptimizer's, or of other layers; nothing is changed.
        """
        own = state_dict.get("sparsify")
        if own is None:
            raise ValueError(f'state_dict must hold "sparsify", as a SparseOptimizer\'s does, got {list(state_dict)}.')
        if set(own["topology"]) != set(self._self_layers):
            theirs, ours = sorted(own["topology"]), sorted(self._self_layers)
            raise ValueError(f"state_dict must be of the sparse layers {ours}, got {theirs}.")
        history = [Record(**record) for record in own["history"]]
        self.__wrapped__.load_state_dict({key: value for key, value in state_dict.items() if key != "sparsify"})
        self._self_step, self._self_evolutions, self._self_seed = own["step"], own["evolutions"], own["seed"]
        self._self_history = history
        self._self_fingerprints = dict(own["topology"])
        self._self_versions = {}

    def _before_step(self, *_: Any) -> None:
        self._self_depth += 1
        self._align()

    def _after_step(self, *_: Any) -> None:
        # A subclass whose step() calls super().step() runs the hooks of both: only the outermost is a step.
        self._self_depth -= 1
        if self._self_depth > 0:
            return
        found_inf = getattr(self.__wrapped__, "found_inf", None)  # a fused optimizer under GradScaler steps in vain
        if found_inf is not None and found_inf.item():
            return
        self._self_step += 1
        if self._self_evolution.due(self._self_step):
            self.evolve()

    def _align(self) -> None:
        """Start optimizer state afresh where a layer's topology was replaced under it (`load_state_dict`, `trim`)."""
        for name, layer in self._self_layers.items():
            if self._self_versions.get(name) == layer.topology_version:
                continue
            expected = self._self_fingerprints.pop(name, None)
            same = expected == topology.fingerprint(layer.crow, layer.col)
            if not same and optimizer_state.forget(self.__wrapped__, layer.values):
                warnings.warn(
                    f"The topology of layer {name!r} is not the one its optimizer state belongs to: the state of this "
                    "layer starts afresh. To resume training, load model and optimizer from the same checkpoint.",
                    stacklevel=3,
                )
            self._self_versions[name] = layer.topology_version

    def _self_parts(self) -> tuple[Any, ...]:
        kept = "_self_step", "_self_evolutions", "_self_history", "_self_versions", "_self_fingerprints"
        return (
            self.__wrapped__,
            self._self_layers,
            self._self_evolution,
            self._self_grown_state,
            self._self_seed,
            {name: getattr(self, name) for name in kept},
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseOptimizer":
        return _rebuild(*copy.deepcopy(self._self_parts(), memo))

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., "SparseOptimizer"], tuple[Any, ...]]:
        return _rebuild, self._self_parts()

    def __repr__(self) -> str:
        return f"{self.__wrapped__!r}\n{self._self_evolution!r} of {len(self._self_layers)} sparse layers"


def check_arguments(optimizer: object, evolution: object, grown_state: object, seed: object) -> None:
    """Raise unless these can make a SparseOptimizer."""
    if isinstance(optimizer, SparseOptimizer):
        raise TypeError("optimizer must not be wrapped already, got a SparseOptimizer. Pass the original optimizer.")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    optimizer_state.check_optimizer(optimizer)
    if not isinstance(evolution, Evolution):
        raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {evolution!r}.")
    if grown_state not in ("zero", "mean"):
        raise ValueError(f'grown_state must be "zero" or "mean", got {grown_state!r}.')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed must be an int or None, got {seed!r}.")


def _grow(rule: GrowthRule, generator: torch.Generator, flat: Tensor, shape: Shape, count: int) -> Tensor:
    return rule(flat, shape, count, generator)


def _rebuild(
    optimizer: Optimizer,
    layers: Mapping[str, SparseLinear],
    evolution: Evolution,
    grown_state: GrownState,
    seed: int,
    rest: Mapping[str, Any],
) -> SparseOptimizer:
    if isinstance(optimizer, LBFGS):  # torch leaves these out when it copies or pickles an LBFGS
        optimizer._params = optimizer.param_groups[0]["params"]
        optimizer._numel_cache = None
    proxy = SparseOptimizer(optimizer, layers, evolution, grown_state=grown_state, seed=seed)
    for name, value in rest.items():
        setattr(proxy, name, value)
    return proxy
