"""`Evolver`: evolves the layers of one optimizer, step by step; `SparseOptimizer` is its face."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsify import averaging, optimizer_state, topology
from sparsify.distributed import Ranks, count_changes, no_pass, standing
from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.evolve import Update, checked_grown_values, evolve
from sparsify.evolution.progress import Progress, Record
from sparsify.evolution.rewire import rewiring, view
from sparsify.evolution.view import Passes, needs_gradient
from sparsify.kernels import Recorder
from sparsify.linear import SparseLinear
from sparsify.matrix import SparseMatrix
from sparsify.optimizer_state import GrownState
from sparsify.parameters import check_held, check_unchanged
from sparsify.swap import Change, Swap, Swapped, settle
from sparsify.telemetry import Explored

NO_TOPOLOGY = (0, 0)
"""The digest of a topology that no layer has."""


class Evolver:
    """What evolves the topologies of `layers`, and moves the buffers of `optimizer` with them.

    Args:
        optimizer: holds the `values` of the layers.
        layers, algorithm, grown_state, seed, targets: as `SparseOptimizer` has them.
    Attributes:
        parameters: the `values` of the layers, which stay the same objects.
        progress: where evolution stands.
        topologies: the digests of those that the optimizer's buffers belong to.
        ranks: the processes that train replicas of the model.
        recorders: keep the operands of backward passes, where the evolution that comes next needs them.
        loading: whether loading a state dict was begun, and not finished.
    """

    swap: Swap | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, SparseLinear],
        algorithm: Evolution,
        grown_state: GrownState,
        seed: int,
        targets: Mapping[str, int],
    ) -> None:
        check_held(optimizer, layers)
        self.optimizer, self.layers, self.algorithm, self.grown_state = optimizer, dict(layers), algorithm, grown_state
        self.parameters = {name: layer.values for name, layer in layers.items()}
        self.progress = Progress(
            seed=seed,
            counts={name: (layer.nnz, targets.get(name, layer.nnz)) for name, layer in layers.items()},
            explored={name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()},
            due=algorithm.due(1),
        )
        self.topologies = {name: layer.digest for name, layer in layers.items()}
        self.ranks = Ranks()
        self.recorders: dict[str, Recorder] = {}
        self.loading = False
        self._watch()

    def begin_step(self) -> None:
        """Before the optimizer steps: its buffers must belong to the topologies, and all ranks must begin alike."""
        self._prepare()
        stale = self.stale()
        if stale:
            had_any = self._have_state(stale)
            afresh = [optimizer_state.afresh(self.optimizer, self.parameters[name]) for name in stale]
            noting = [partial(self._note_topology, name) for name in stale]
            Swap([*afresh, *noting], [self]).commit()
            _say_afresh(had_any)

    def end_step(self) -> None:
        """After the optimizer has stepped: evolve where that is due."""
        self.progress.step += 1
        for recorder in self.recorders.values():
            recorder.stepped()
        due = self.algorithm.due(self.progress.step + 1)
        if self.progress.due:
            self._evolve(self._ready(), due)
        self.progress.due = due
        self._watch()

    def evolve(self) -> Record:
        """Evolve now, whatever the schedule says."""
        self._prepare()
        ready = self._ready()
        if not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        had_any = self._have_state(name for name in self.stale() if name in ready)
        record = self._evolve(ready)
        _say_afresh(had_any)
        return record

    def check_whole(self) -> None:
        """Raise RuntimeError where an interruption has left something half done; finish what can be finished."""
        settle(self)
        if self.loading:
            raise RuntimeError(
                "optimizer must have a whole state, got one whose loading was interrupted. Load the checkpoint again."
            )

    def _prepare(self) -> None:
        self.check_whole()
        for name, layer in self.layers.items():
            averaging.check(name, layer)
        if not self.ranks.met:
            self._meet()

    def _ready(self) -> dict[str, Passes]:
        """The layers that can evolve, with the operands of their backward passes.

        Those that the optimizer holds; where a rule needs gradients, those that a backward pass reached, on every rank.
        """
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        algorithm, layers = self.algorithm, {name: x for name, x in self.layers.items() if id(x.values) in held}
        passes = {name: recorder.passes for name, recorder in self.recorders.items() if recorder.passes}
        reached = {name for name, layer in layers.items() if layer.values.grad is not None}
        everyone = self._tell({"reached": reached, "recorded": set(passes)})
        if needs_gradient(algorithm.drop) or needs_gradient(algorithm.grow):
            shared = set.intersection(*(told["reached"] for told in everyone))
            layers = {name: layer for name, layer in layers.items() if name in shared}
        for name in set.union(*(told["recorded"] for told in everyone)) & layers.keys():
            passes.setdefault(name, [no_pass(layers[name])])
        return {name: passes.get(name, []) for name in layers}

    def _evolve(self, ready: Mapping[str, Passes], due: bool | None = None) -> Record:
        """Drop and grow: everything is prepared, and then carried out as a whole."""
        algorithm, progress, ranks = self.algorithm, self.progress, self.ranks
        check_unchanged(self.layers, self.parameters)
        layers = {name: self.layers[name] for name in ready}
        views, surplus, stale = [], [], self.stale()
        averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            if name not in stale:
                optimizer_state.check_elementwise(self.optimizer, layer.values, name)
            generator = topology.generator(progress.seed, "evolution", progress.evolutions, name)
            views.append(view(name, layer, generator, ready[name], ranks.sum))
            surplus.append(progress.surplus(algorithm, name, layer.nnz))
        fraction = algorithm.fraction(progress.step)
        updates = dict(zip(layers, evolve(algorithm, views, surplus, fraction), strict=True)) if views else {}
        grown = {seen.name: checked_grown_values(algorithm, updates[seen.name], seen) for seen in views}
        if ranks.group is not None:
            digests = {name: topology.fingerprint(update.flat, grown[name]) for name, update in updates.items()}
            ranks.tell({"new topology": digests}, self._device)
            if any(len(update.flat) != update.old_nnz for update in updates.values()):
                raise count_changes(algorithm)
        record, noting = progress.noting(fraction, updates, due)
        changes = [
            self.rewiring(name, update, grown[name], averages[name], name in stale) for name, update in updates.items()
        ]
        owners: list[Swapped] = [self, *layers.values(), *chain.from_iterable(averages.values())]
        following = [] if due is None else [self._watch]
        Swap([*chain.from_iterable(changes), noting, *following], owners).commit()
        return record

    def rewiring(
        self, name: str, update: Update, grown: Tensor, averages: Sequence[SparseMatrix], stale: bool
    ) -> Iterator[Change]:
        """Prepare to carry out `update` of a layer, with its optimizer state; nothing is changed yet.

        Args:
            stale: whether that state belongs to another topology; then it starts afresh.
        """
        layer, optimizer = self.layers[name], self.optimizer
        yield from rewiring(layer, update, grown, None if stale else optimizer, self.grown_state, averages)
        if stale:
            yield optimizer_state.afresh(optimizer, layer.values, len(update.flat))
        yield partial(self._note_topology, name)

    def _note_topology(self, name: str) -> None:
        self.topologies[name] = self.layers[name].last_digest

    def _meet(self) -> None:
        """Once before the first step, and once after loading: check the optimizer, and that all ranks begin alike."""
        ranks, progress = self.ranks, self.progress
        check_unchanged(self.layers, self.parameters)
        for name, values in self.parameters.items():
            if not optimizer_state.fits(self.optimizer, values):
                self.topologies[name] = NO_TOPOLOGY
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
            "topology": dict(self.topologies),
        }

    def check_state_dict(self, state: object) -> None:
        """Raise ValueError unless `load_state_dict` can load `state`."""
        if not isinstance(state, Mapping):
            raise ValueError(f'state_dict["sparsify"] must be a dict, got {type(state).__name__}.')
        own = {"schedules": dict(self._stateful()), "topology": self.layers}
        for key, expected in own.items():
            found = state.get(key)
            if not isinstance(found, Mapping) or set(found) != set(expected):
                theirs = list(found) if isinstance(found, Mapping) else type(found).__name__
                raise ValueError(f'state_dict["sparsify"]["{key}"] must be of {sorted(expected)}, got {theirs}.')
        for name, layer in self.layers.items():
            topology.check_digest(f'state_dict["sparsify"]["topology"]["{name}"]', state["topology"][name], layer.shape)
        shapes = {name: layer.shape for name, layer in self.layers.items()}
        self.progress.check_state_dict(state, shapes)

    def load_state_dict(self, state: Mapping[str, Any], load_wrapped: Callable[[], None]) -> None:
        """Load what `state_dict()` gave, and the wrapped optimizer's state with it.

        Args:
            state: checked.
            load_wrapped: loads the wrapped optimizer's state; where it raises, it has changed nothing.
        """
        settle(self)
        before = [(part, part.state_dict()) for _, part in self._stateful()]
        self.loading = True
        try:
            for name, part in self._stateful():
                part.load_state_dict(state["schedules"][name])
            load_wrapped()
        except Exception:
            for part, old in before:
                part.load_state_dict(old)
            self.loading = False
            raise
        self.progress.load_state_dict(state)
        self.topologies, self.recorders = {name: tuple(of) for name, of in state["topology"].items()}, {}
        self.ranks.met = False
        self._watch()
        self.loading = False

    def __getstate__(self) -> dict[str, Any]:
        settle(self)
        return {**vars(self), "recorders": {}, "swap": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch()

    def _stateful(self) -> list[tuple[str, Any]]:
        """The rules and schedules that have state of their own, as a user's may; ours have none."""
        return [(name, part) for name, part in vars(self.algorithm).items() if hasattr(part, "load_state_dict")]

    def stale(self) -> list[str]:
        """The layers whose topology was replaced under their optimizer state (`load_state_dict`, `trim`)."""
        return [name for name, layer in self.layers.items() if layer.digest != self.topologies[name]]

    def _have_state(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if optimizer_state.has_any(self.optimizer, self.parameters[name])]


def _say_afresh(names: Sequence[str]) -> None:
    if names:
        warnings.warn(
            f"The topologies of {', '.join(map(repr, names))} are not those that their optimizer state belongs to: it "
            "starts afresh. To resume training, load model and optimizer from the same checkpoint.",
            stacklevel=5,
        )
