"""`SparseOptimizer`: any torch optimizer whose step() also evolves the topology on schedule."""

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import wrapt
from torch.optim import LBFGS, Optimizer

from sparsify import averaging, optimizer_state, topology
from sparsify.distributed import SHARDED, Ranks, count_changes, no_pass, standing
from sparsify.evolution.algorithms import Evolution, Static
from sparsify.evolution.evolve import evolve
from sparsify.evolution.progress import Progress, Record
from sparsify.evolution.rewire import rewire, view
from sparsify.evolution.view import Passes, needs_gradient
from sparsify.kernels import Recorder
from sparsify.linear import SparseLinear
from sparsify.optimizer_state import GrownState
from sparsify.telemetry import Explored

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

KEPT = ("evolution", "progress", "versions", "fingerprints", "ranks")
"""What a copy of a SparseOptimizer takes over as it is."""


class SparseOptimizer(wrapt.ObjectProxy):  # type: ignore[type-arg]
    """A proxy of `optimizer` that evolves `layers` after the steps that are due.

    Everything the wrapped optimizer has is here; `isinstance(optimizer, torch.optim.Optimizer)` holds. Evolution
    hangs on the wrapped optimizer's step hooks, so stepping the original object evolves too, once.

    In distributed training (see `process_group`) every rank evolves alike, and `step()` raises RuntimeError on every
    rank, with nothing changed, where ranks turn out to differ or the algorithm changes the number of connections.

    Args:
        optimizer: holds the `values` of the layers among its parameters.
        layers: name -> SparseLinear.
        evolution: `SET(...)`, `Static()` or another `Evolution`.
        grown_state: what regrown connections find in elementwise optimizer buffers: "zero", or "mean" (second
            moments take the mean of the survivors').
        seed: of all random choices of evolution; None takes `torch.initial_seed()`.
        targets: name -> connections that the layer has in the end, where the algorithm prunes; as many as now where
            not given.
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
        targets: Mapping[str, int] | None = None,
    ) -> None:
        check_arguments(optimizer, evolution, grown_state, seed)
        _check_held(optimizer, layers)
        for layer in layers.values():
            averaging.trained(layer)
        super().__init__(optimizer)
        self._self_layers = dict(layers)
        self._self_evolution = evolution
        self._self_grown_state = grown_state
        self._self_progress = Progress(
            seed=torch.initial_seed() if seed is None else seed,
            counts={name: (layer.nnz, (targets or {}).get(name, layer.nnz)) for name, layer in layers.items()},
            explored={name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()},
            due=evolution.due(1),
        )
        # The topology that the optimizer's buffers belong to: a layer's version, and after loading a fingerprint.
        self._self_versions = {name: layer.topology_version for name, layer in layers.items()}
        self._self_fingerprints: dict[str, str] = {}
        self._self_depth = 0
        self._self_ranks = Ranks()
        self._self_recorders: dict[str, Recorder] = {}
        self._watch()
        # A compiled step() calls these as they are: traced, evolution would fall into dozens of graphs.
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        with ExitStack() as undo:
            undo.callback(optimizer.register_step_pre_hook(before).remove)
            optimizer.register_step_post_hook(after)
            undo.pop_all()

    @property
    def evolution(self) -> Evolution:
        """The algorithm that evolves the topology."""
        return self._self_evolution

    @property
    def process_group(self) -> "ProcessGroup | None":
        """The ranks that train replicas of the model, None where there is one only.

        By default those of torch.distributed's default group, where it is initialised. Set another group where only its
        ranks train replicas, or None where every rank trains a model of its own. A pickled optimizer forgets a group.
        """
        return self._self_ranks.group

    @process_group.setter
    def process_group(self, group: "ProcessGroup | None") -> None:
        self._self_ranks = Ranks(group)

    @property
    def history(self) -> list[Record]:
        """One record for each evolution so far."""
        return self._self_progress.history

    @property
    def explored(self) -> dict[str, float]:
        """The share of each layer's places that were ever active, an estimate (see `telemetry.Explored`)."""
        return {name: explored.share for name, explored in self._self_progress.explored.items()}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Step the wrapped optimizer; evolution follows where it is due."""
        # Defined here because learning-rate schedulers replace `optimizer.step`: theirs then stays on the proxy.
        self._self_depth = 0
        return self.__wrapped__.step(*args, **kwargs)

    def evolve(self) -> Record:
        """Drop and grow all sparse layers now, whatever the schedule says. In distributed training: on every rank.

        Returns:
            the record that is appended to `history`.
        Raises:
            TypeError: the optimizer holds state that is not elementwise.
            ValueError: a rule needs the gradient of a backward pass, and there is none; or a rule of the user's broke
                its contract. Nothing is changed.
            RuntimeError: ranks differ. Nothing is changed.
        """
        self._align()
        self._meet()
        ready = self._ready()
        if not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        return self._evolve(ready)

    def _ready(self) -> dict[str, Passes]:
        """The layers that can evolve, with the operands of their backward passes.

        Where a rule needs gradients, those that a backward pass reached, on every rank.
        """
        algorithm, layers = self._self_evolution, self._self_layers
        passes = {name: recorder.passes for name, recorder in self._self_recorders.items() if recorder.passes}
        reached = {name for name, layer in layers.items() if layer.values.grad is not None}
        everyone = self._tell({"reached": reached, "recorded": set(passes)})
        if needs_gradient(algorithm.drop) or needs_gradient(algorithm.grow):
            shared = set.intersection(*(told["reached"] for told in everyone))
            layers = {name: layer for name, layer in layers.items() if name in shared}
        for name in set.union(*(told["recorded"] for told in everyone)) & layers.keys():
            passes.setdefault(name, [no_pass(layers[name])])
        return {name: passes.get(name, []) for name in layers}

    def _evolve(self, ready: Mapping[str, Passes]) -> Record:
        algorithm, progress, ranks = self._self_evolution, self._self_progress, self._self_ranks
        layers = {name: self._self_layers[name] for name in ready}
        views, surplus = [], []
        averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            optimizer_state.check_elementwise(self.__wrapped__, layer.values, name)
            generator = topology.generator(progress.seed, "evolution", progress.evolutions, name)
            views.append(view(name, layer, generator, ready[name], ranks.sum))
            surplus.append(progress.surplus(algorithm, name, layer.nnz))
        fraction = algorithm.fraction(progress.step)
        updates = evolve(algorithm, views, surplus, fraction) if views else []
        grown = [
            algorithm.grown_values(len(update.grown), seen.shape, len(update.flat), seen.generator)
            for update, seen in zip(updates, views, strict=True)
        ]
        if ranks.group is not None:
            digests = [topology.fingerprint(update.flat, values) for update, values in zip(updates, grown, strict=True)]
            ranks.tell({"new topology": dict(zip(layers, digests, strict=True))}, self._device)
            if any(len(update.flat) != update.old_nnz for update in updates):
                raise count_changes(algorithm)
        for (name, layer), update, values in zip(layers.items(), updates, grown, strict=True):
            rewire(layer, update, values, self.__wrapped__, self._self_grown_state)
            for average in averages[name]:
                rewire(average, update, values)
            self._self_versions[name] = layer.topology_version
        return progress.note(fraction, dict(zip(layers, updates, strict=True)))

    def _meet(self) -> None:
        """Before the first step, and after loading: what has to be so by then, and what all ranks must begin with."""
        ranks, progress = self._self_ranks, self._self_progress
        if ranks.met:
            return
        _check_held(self.__wrapped__, self._self_layers)
        if ranks.group is not None:
            if self._self_evolution.surplus is not None:
                raise count_changes(self._self_evolution)
            new = not progress.step and not progress.evolutions
            everyone = self._tell(
                {
                    "evolution": self._self_evolution.description,
                    "optimizer state": optimizer_state.digests(self.__wrapped__, self._self_layers),
                    "seed": None if new else progress.seed,
                    "own seed": progress.seed,
                }
            )
            if new:  # DistributedDataParallel has given every rank the topology of rank 0
                progress.seed = everyone[0]["own seed"]
                progress.explored = {n: Explored(layer.flat(), layer.shape) for n, layer in self._self_layers.items()}
        ranks.met = True

    def _tell(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        """What each rank says: `own`, and where it stands, which must be the same."""
        ranks, progress, layers = self._self_ranks, self._self_progress, self._self_layers
        if ranks.group is None:
            return [own]
        return ranks.tell({**standing(layers, progress.step, progress.evolutions), **own}, self._device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.__wrapped__.param_groups[0]["params"][0].device
        return device

    def _watch(self) -> None:
        """Keep the operands of the backward passes, where the evolution that comes next needs them."""
        coming = self._self_progress.due or self._self_evolution.interval is None
        if not (coming and needs_gradient(self._self_evolution.grow)):
            self._self_recorders = {}
        elif not self._self_recorders:
            self._self_recorders = {name: Recorder(layer) for name, layer in self._self_layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict and, under "sparsify", what evolution needs to resume bit for bit."""
        own = {
            **self._self_progress.state_dict(),
            "schedules": {name: part.state_dict() for name, part in self._stateful()},
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
        stateful = dict(self._stateful())
        if set(stateful) != set(own["schedules"]):
            raise ValueError(f"state_dict must hold the state of {sorted(stateful)}, got {sorted(own['schedules'])}.")
        self.__wrapped__.load_state_dict({key: value for key, value in state_dict.items() if key != "sparsify"})
        self._self_progress.load_state_dict(own)
        for name, part in stateful.items():
            part.load_state_dict(own["schedules"][name])
        self._self_fingerprints = dict(own["topology"])
        self._self_versions = {}
        self._self_recorders = {}
        self._self_ranks.met = False
        self._watch()

    def _stateful(self) -> list[tuple[str, Any]]:
        """The rules and schedules that have state of their own, as a user's may; ours have none."""
        return [(name, part) for name, part in vars(self._self_evolution).items() if hasattr(part, "load_state_dict")]

    def _before_step(self, *_: Any) -> None:
        self._align()
        self._meet()
        self._self_depth += 1

    def _after_step(self, *_: Any) -> None:
        # A subclass whose step() calls super().step() runs the hooks of both: only the outermost is a step.
        self._self_depth -= 1
        if self._self_depth > 0:
            return
        found_inf = getattr(self.__wrapped__, "found_inf", None)  # a fused optimizer under GradScaler steps in vain
        if found_inf is not None and found_inf.item():
            return
        progress = self._self_progress
        progress.step += 1
        for recorder in self._self_recorders.values():
            recorder.stepped()
        if progress.due:
            self._evolve(self._ready())
        progress.due = self._self_evolution.due(progress.step + 1)
        self._watch()

    def _align(self) -> None:
        """Start optimizer state afresh where a layer's topology was replaced under it (`load_state_dict`, `trim`)."""
        for name, layer in self._self_layers.items():
            averaging.check(name, layer)
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
        own = {f"_self_{name}": getattr(self, f"_self_{name}") for name in KEPT}
        return self.__wrapped__, self._self_layers, self._self_grown_state, own

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
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):  # a trainer's, made without Optimizer.__init__
        raise TypeError(
            f"optimizer must be the original one, got {type(optimizer).__name__}, a wrapper without step hooks. Call "
            "sparsify() before the trainer wraps it."
        )
    optimizer_state.check_optimizer(optimizer)
    if not isinstance(evolution, Evolution):
        raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {evolution!r}.")
    if grown_state not in ("zero", "mean"):
        raise ValueError(f'grown_state must be "zero" or "mean", got {grown_state!r}.')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed must be an int or None, got {seed!r}.")


def _check_held(optimizer: Optimizer, layers: Mapping[str, SparseLinear]) -> None:
    """Raise unless `optimizer` holds the values of every layer, whole."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if type(layer.values).__name__ == "DTensor":
            raise TypeError(f"values must be whole on every rank, got a DTensor in layer {name!r}: {SHARDED}")
        if id(layer.values) not in held:
            raise ValueError(
                f"optimizer must hold the values of every sparse layer, got none of layer {name!r}. If they were "
                f"replaced after sparsify(): {SHARDED}"
            )


def _rebuild(
    optimizer: Optimizer,
    layers: Mapping[str, SparseLinear],
    grown_state: GrownState,
    own: Mapping[str, Any],
) -> SparseOptimizer:
    if isinstance(optimizer, LBFGS):  # torch leaves these out when it copies or pickles an LBFGS
        optimizer._params = optimizer.param_groups[0]["params"]
        optimizer._numel_cache = None
    proxy = SparseOptimizer(optimizer, layers, Static(), grown_state=grown_state)
    for name, value in own.items():
        setattr(proxy, name, value)
    proxy._watch()
    return proxy
