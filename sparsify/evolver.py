"""`Evolver`: evolves the layers of one optimizer, step by step; `SparseOptimizer` is its face."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from sparsify import averaging, optimizer_state, topology
from sparsify.distributed import SHARDED, Ranks, count_changes, no_pass, standing
from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.evolve import evolve
from sparsify.evolution.progress import Progress, Record
from sparsify.evolution.rewire import rewire, view
from sparsify.evolution.view import Passes, needs_gradient
from sparsify.kernels import Recorder
from sparsify.linear import SparseLinear
from sparsify.optimizer_state import GrownState
from sparsify.telemetry import Explored


class Evolver:
    """What evolves the topologies of `layers`, and moves the buffers of `optimizer` with them.

    Args:
        optimizer: holds the `values` of the layers.
        layers, algorithm, grown_state, seed, targets: as `SparseOptimizer` has them.
    Attributes:
        progress: where evolution stands.
        versions, fingerprints: the topology that the optimizer's buffers belong to: a layer's version, and after
            loading a fingerprint.
        ranks: the processes that train replicas of the model.
        recorders: keep the operands of backward passes, where the evolution that comes next needs them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, SparseLinear],
        algorithm: Evolution,
        grown_state: GrownState,
        seed: int,
        targets: Mapping[str, int],
    ) -> None:
        _check_held(optimizer, layers)
        self.optimizer, self.layers, self.algorithm, self.grown_state = optimizer, dict(layers), algorithm, grown_state
        self.progress = Progress(
            seed=seed,
            counts={name: (layer.nnz, targets.get(name, layer.nnz)) for name, layer in layers.items()},
            explored={name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()},
            due=algorithm.due(1),
        )
        self.versions = {name: layer.topology_version for name, layer in layers.items()}
        self.fingerprints: dict[str, str] = {}
        self.ranks = Ranks()
        self.recorders: dict[str, Recorder] = {}
        self._watch()

    def begin_step(self) -> None:
        """Before the optimizer steps: what its buffers belong to, and what all ranks begin with."""
        self._align()
        self._meet()

    def end_step(self) -> None:
        """After the optimizer has stepped: evolve where that is due."""
        self.progress.step += 1
        for recorder in self.recorders.values():
            recorder.stepped()
        if self.progress.due:
            self._evolve(self._ready())
        self.progress.due = self.algorithm.due(self.progress.step + 1)
        self._watch()

    def evolve(self) -> Record:
        """Evolve now, whatever the schedule says."""
        self.begin_step()
        ready = self._ready()
        if not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        return self._evolve(ready)

    def _ready(self) -> dict[str, Passes]:
        """The layers that can evolve, with the operands of their backward passes.

        Where a rule needs gradients, those that a backward pass reached, on every rank.
        """
        algorithm, layers = self.algorithm, self.layers
        passes = {name: recorder.passes for name, recorder in self.recorders.items() if recorder.passes}
        reached = {name for name, layer in layers.items() if layer.values.grad is not None}
        everyone = self._tell({"reached": reached, "recorded": set(passes)})
        if needs_gradient(algorithm.drop) or needs_gradient(algorithm.grow):
            shared = set.intersection(*(told["reached"] for told in everyone))
            layers = {name: layer for name, layer in layers.items() if name in shared}
        for name in set.union(*(told["recorded"] for told in everyone)) & layers.keys():
            passes.setdefault(name, [no_pass(layers[name])])
        return {name: passes.get(name, []) for name in layers}

    def _evolve(self, ready: Mapping[str, Passes]) -> Record:
        algorithm, progress, ranks = self.algorithm, self.progress, self.ranks
        layers = {name: self.layers[name] for name in ready}
        views, surplus = [], []
        averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            optimizer_state.check_elementwise(self.optimizer, layer.values, name)
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
            rewire(layer, update, values, self.optimizer, self.grown_state, averages[name])
            self.versions[name] = layer.topology_version
        return progress.note(fraction, dict(zip(layers, updates, strict=True)))

    def _meet(self) -> None:
        """Before the first step, and after loading: what has to be so by then, and what all ranks must begin with."""
        ranks, progress = self.ranks, self.progress
        if ranks.met:
            return
        _check_held(self.optimizer, self.layers)
        if ranks.group is not None:
            if self.algorithm.surplus is not None:
                raise count_changes(self.algorithm)
            new = not progress.step and not progress.evolutions
            everyone = self._tell(
                {
                    "evolution": self.algorithm.description,
                    "optimizer state": optimizer_state.digests(self.optimizer, self.layers),
                    "seed": None if new else progress.seed,
                    "own seed": progress.seed,
                }
            )
            if new:  # DistributedDataParallel has given every rank the topology of rank 0
                progress.seed = everyone[0]["own seed"]
                progress.explored = {n: Explored(layer.flat(), layer.shape) for n, layer in self.layers.items()}
        ranks.met = True

    def _tell(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        """What each rank says: `own`, and where it stands, which must be the same."""
        if self.ranks.group is None:
            return [own]
        where = standing(self.layers, self.progress.step, self.progress.evolutions)
        return self.ranks.tell({**where, **own}, self._device)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).values.device

    def _watch(self) -> None:
        """Keep the operands of the backward passes, where the evolution that comes next needs them."""
        coming = self.progress.due or self.algorithm.interval is None
        if not (coming and needs_gradient(self.algorithm.grow)):
            self.recorders = {}
        elif not self.recorders:
            self.recorders = {name: Recorder(layer) for name, layer in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """What evolution needs to resume bit for bit, as plain numbers, lists, dicts and tensors."""
        return {
            **self.progress.state_dict(),
            "schedules": {name: part.state_dict() for name, part in self._stateful()},
            "topology": {name: topology.fingerprint(layer.crow, layer.col) for name, layer in self.layers.items()},
        }

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless `load_state_dict` can load `state`."""
        if set(state["topology"]) != set(self.layers):
            theirs, ours = sorted(state["topology"]), sorted(self.layers)
            raise ValueError(f"state_dict must be of the sparse layers {ours}, got {theirs}.")
        stateful = dict(self._stateful())
        if set(stateful) != set(state["schedules"]):
            raise ValueError(f"state_dict must hold the state of {sorted(stateful)}, got {sorted(state['schedules'])}.")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict()` gave."""
        self.progress.load_state_dict(state)
        for name, part in self._stateful():
            part.load_state_dict(state["schedules"][name])
        self.fingerprints, self.versions, self.recorders = dict(state["topology"]), {}, {}
        self.ranks.met = False
        self._watch()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "recorders": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch()

    def _stateful(self) -> list[tuple[str, Any]]:
        """The rules and schedules that have state of their own, as a user's may; ours have none."""
        return [(name, part) for name, part in vars(self.algorithm).items() if hasattr(part, "load_state_dict")]

    def _align(self) -> None:
        """Start optimizer state afresh where a layer's topology was replaced under it (`load_state_dict`, `trim`)."""
        afresh = []
        for name, layer in self.layers.items():
            averaging.check(name, layer)
            if self.versions.get(name) == layer.topology_version:
                continue
            expected = self.fingerprints.pop(name, None)
            same = expected == topology.fingerprint(layer.crow, layer.col)
            if not same and optimizer_state.forget(self.optimizer, layer.values):
                afresh.append(repr(name))
            self.versions[name] = layer.topology_version
        if afresh:
            warnings.warn(
                f"The topologies of {', '.join(afresh)} are not those that their optimizer state belongs to: it starts "
                "afresh. To resume training, load model and optimizer from the same checkpoint.",
                stacklevel=4,
            )


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
