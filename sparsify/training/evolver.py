"""`Evolver`: evolves the layers of one optimizer, step by step; `SparseOptimizer` is its face."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsify import topology
from sparsify.distributed import Ranks
from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.layer_view import Passes, needs_gradient
from sparsify.evolution.scopes import across_layers
from sparsify.evolution.update import Update, checked_grown_values, evolve
from sparsify.kernels import Recorder
from sparsify.layers import averaging
from sparsify.layers.averaging import Average
from sparsify.layers.linear import SparseLinear
from sparsify.swap import Change, Swap, Swapped, settle
from sparsify.topology import Digest
from sparsify.training import holders, optimizer_loading, strangers
from sparsify.training.agreement import comparable, count_changes, no_pass, standing, tell
from sparsify.training.explored import Explored
from sparsify.training.foreign_writes import ForeignWrites
from sparsify.training.old_weights import OldWeights, warn_of_old_weights
from sparsify.training.optimizer_state import GrownState, Kept
from sparsify.training.parameters import check_held, check_unchanged
from sparsify.training.progress import Progress, Record
from sparsify.training.resting import able, with_gradient
from sparsify.training.rewiring import prepare_update, view
from sparsify.warning import warn

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
        resets: how often each layer had been reset when its buffers last started afresh for that.
        ranks: the processes that train replicas of the model.
        recorders: keep the operands of backward passes, where the evolution that comes next needs them.
        loading: whether loading a state dict was begun, and not finished.
        old_weights: dense weights that the layers have replaced.
        foreign: sees to what other code writes into the layers between steps.
        is_checked: whether what the optimizer keeps was found to be elementwise, after a step.
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
        self.resets = {name: layer.resets for name, layer in layers.items()}
        self.ranks = Ranks()
        self.recorders: dict[str, Recorder] = {}
        self.loading = False
        self.old_weights: OldWeights = []
        self.is_checked = False
        self.foreign = ForeignWrites(self.layers)
        self._around: list[ReferenceType[Any]] = []
        self._reached: set[str] = set()
        self._inner: dict[str, tuple[Tensor, Passes]] | None = None

    def begin_step(self) -> None:
        """Before the optimizer steps: its buffers must belong to the topologies, and all ranks must begin alike."""
        self._prepare()
        if self.old_weights:
            old, self.old_weights = self.old_weights, []
            warn_of_old_weights(old)
        stale = self.stale()
        if stale:
            kept = self.kept()
            had_any = [name for name in stale if kept.has_any(self.parameters[name])]
            afresh = chain.from_iterable(kept.afresh(self.parameters[name]) for name in stale)
            noting = [partial(self._note_topology, name) for name in stale]
            Swap([*afresh, *noting], [self]).commit()
            _say_afresh(had_any)
        self._reached = self._with_gradient()

    def inner_step(self) -> None:
        """An optimizer inside another has stepped: the other may zero the gradients before it is done."""
        self._reached |= self._with_gradient()
        if self.progress.due:
            self._inner = {
                name: (gradient.clone(), list(passes)) for name, (gradient, passes) in self._gradients().items()
            }
        self.foreign.note()

    def end_step(self) -> None:
        """After the optimizer has stepped: evolve where that is due."""
        progress = self.progress
        progress.step += 1
        progress.trained |= self._reached | self._with_gradient()  # a closure has made some in the meantime
        self._reached = set()
        for recorder in self.recorders.values():
            recorder.stepped()
        if not self.is_checked:
            self.kept().check(self.parameters)
            self.is_checked = True
        due = self.algorithm.due(progress.step + 1) or self._catches_up(progress.step + 1)
        if progress.due:
            self._evolve(self._ready(progress.trained, grows=not self._is_late), due)
        progress.due, self._inner = due, None
        self.watch()
        self.foreign.note()

    def evolve(self) -> Record:
        """Evolve now, whatever the schedule says."""
        self._prepare()
        can_train = self._able()
        ready = self._ready(can_train & (self.progress.trained | self._with_gradient()) or can_train)
        if can_train and not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        kept = self.kept()
        had_any = [name for name in self.stale() if name in ready and kept.has_any(self.parameters[name])]
        record = self._evolve(ready)
        self.foreign.note()
        _say_afresh(had_any)
        return record

    def check_whole(self) -> None:
        """Raise RuntimeError where an interruption has left something half done; finish what can be finished."""
        settle(self)
        if self.loading:
            raise RuntimeError(
                "optimizer must have a whole state, got one whose loading was interrupted. Load the checkpoint again."
            )
        if reset := [name for name, layer in self.layers.items() if layer.resets != self.resets[name]]:
            self._begin_anew(reset)

    def _begin_anew(self, names: Sequence[str]) -> None:
        """`reset_parameters` was called on these layers: their state starts afresh, and their places are explored."""
        kept, explored, changes = self.kept(), dict[str, Explored](), list[Change]()
        for name in names:
            layer = self.layers[name]
            explored[name] = copy.copy(self.progress.explored[name])
            explored[name].add(layer.flat())
            changes += kept.afresh(self.parameters[name])
            changes += () if layer.bias is None else kept.afresh(layer.bias)
            changes += partial(self._note_topology, name), partial(self.resets.__setitem__, name, layer.resets)
        Swap([*changes, partial(self.progress.explored.update, explored)], [self]).commit()
        self.ranks.met = False  # they may have drawn different topologies

    def _prepare(self) -> None:
        self.check_whole()
        for name, layer in self.layers.items():
            averaging.check(name, layer)
        self.foreign.check(self.parameters)
        if not self.ranks.met:
            self._meet()

    def successor(
        self,
        layers: Mapping[str, SparseLinear],
        algorithm: Evolution,
        grown_state: GrownState,
        seed: int,
        targets: Mapping[str, int],
    ) -> "Evolver":
        """What evolves these layers by another algorithm, from its first step on, with the same optimizer and state."""
        new = Evolver(self.optimizer, layers, algorithm, grown_state, seed, targets)
        before = {layer: name for name, layer in self.layers.items()}
        for name, layer in layers.items():
            if layer in before:  # its buffers may belong to another topology than it has
                new.topologies[name] = self.topologies[before[layer]]
                new.resets[name] = self.resets[before[layer]]
        new.ranks, new.old_weights, new._around = copy.deepcopy(self.ranks), [*self.old_weights], [*self._around]
        return new

    def kept(self) -> Kept:
        """What the optimizer, and those around it that have been seen, keep now."""
        return Kept(*self._roots())

    def _roots(self) -> list[Any]:
        return [self.optimizer, *(each for reference in self._around if (each := reference()) is not None)]

    def notice(self, around: Iterable[object]) -> None:
        """These optimizers step the one that is evolved: what they keep moves with evolution, too."""
        known = {id(each) for each in holders.optimizers(*self._roots())}
        self._around += [ref(each) for each in around if id(each) not in known]

    def _able(self) -> set[str]:
        """The layers that can train."""
        return able(holders.optimizers(*self._roots()), self.parameters)

    def _with_gradient(self) -> set[str]:
        """Of the layers that have not trained since the last evolution: those that a step trains now."""
        trained = self.progress.trained
        if len(trained) == len(self.parameters):
            return set()
        found = with_gradient({name: values for name, values in self.parameters.items() if name not in trained})
        return found & self._able() if found else found

    def _catches_up(self, step: int) -> bool:
        """Whether layers that did not train while others were pruned are pruned after `step`, later than `until`."""
        if self.algorithm.surplus is None or not self.algorithm.is_late(step):
            return False
        return sum(map(self._surplus, self._able())) > 0

    def _surplus(self, name: str) -> int:
        return self.progress.surplus(self.algorithm, name, self.layers[name].nnz)

    @property
    def _is_late(self) -> bool:
        """Whether evolution is over by the schedule: what still comes only prunes."""
        until = self.algorithm.until
        return until is not None and self.progress.step > until

    def _gradients(self) -> dict[str, tuple[Tensor, Passes]]:
        """The gradient of each layer that has one, with the operands of the backward passes that made it.

        Zeros that no pass has made are what `zero_grad(set_to_none=False)` leaves of a layer without gradient.
        """
        if self._inner is not None:
            return self._inner
        alone = self.ranks.group is None
        made = {name: recorder.made(self.parameters[name].grad, alone) for name, recorder in self.recorders.items()}
        return {
            name: (p.grad, made.get(name, []))
            for name, p in self.parameters.items()
            if p.grad is not None and (name not in made or made[name] or bool(p.grad.any()))
        }

    def _ready(self, trained: Collection[str], grows: bool = True) -> dict[str, tuple[Tensor | None, Passes]]:
        """The layers that evolve, with gradient and operands of backward passes where there are any.

        Of the trained those that still can; where a rule needs gradients, those that a backward pass reached. All of it
        on every rank.
        """
        algorithm, gradients = self.algorithm, self._gradients()
        ready = self._able() & set(trained)
        if needs_gradient(algorithm.drop) or (grows and needs_gradient(algorithm.grow)):
            ready &= gradients.keys()
        recorded = {name for name, (_, passes) in gradients.items() if passes}
        everyone = self._tell({"ready": ready, "recorded": recorded})
        ready = set.intersection(*(told["ready"] for told in everyone))
        elsewhere = set.union(*(told["recorded"] for told in everyone)) - recorded
        found: dict[str, tuple[Tensor | None, Passes]] = {}
        for name, layer in self.layers.items():
            if name in ready:
                gradient, passes = gradients.get(name, (None, []))
                found[name] = gradient, [no_pass(layer)] if name in elsewhere else passes
        return found

    def _evolve(self, ready: Mapping[str, tuple[Tensor | None, Passes]], due: bool | None = None) -> Record:
        """Drop and grow: everything is prepared, and then carried out as a whole."""
        algorithm, progress, ranks = self.algorithm, self.progress, self.ranks
        check_unchanged(self.layers, self.parameters)
        layers = {name: self.layers[name] for name in ready}
        views, surplus, stale = [], [], self.stale()
        kept = self.kept()
        kept.check({name: layer.values for name, layer in layers.items() if name not in stale})
        strangers.look_around(layers)
        averages = {name: averaging.averages(name, layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            generator = topology.generator(progress.seed, "evolution", progress.evolutions, name)
            views.append(view(name, layer, generator, *ready[name], ranks.sum))
            surplus.append(self._surplus(name))
        if algorithm.scope is across_layers and surplus:  # what rests may have given connections away
            surplus[0] -= max(0, sum(surplus) - sum(map(self._surplus, self.layers)))
        fraction = 0.0 if due is not None and self._is_late else algorithm.fraction(progress.step)
        updates = dict(zip(layers, evolve(algorithm, views, surplus, fraction), strict=True)) if views else {}
        grown = {seen.name: checked_grown_values(algorithm, updates[seen.name], seen) for seen in views}
        if ranks.group is not None:
            digests = {name: topology.fingerprint(update.flat, grown[name]) for name, update in updates.items()}
            tell(ranks, {"new topology": digests}, self._device)
            if any(len(update.flat) != update.old_nnz for update in updates.values()):
                raise count_changes(algorithm)
        record, noting = progress.noting(fraction, updates, due)
        changes = [
            self.prepare_update(name, update, grown[name], averages[name], name in stale, kept)
            for name, update in updates.items()
        ]
        owners: list[Swapped] = [self, *layers.values(), *chain.from_iterable(averages.values())]
        following = [] if due is None else [self.watch]
        Swap([*chain.from_iterable(changes), noting, *following], owners).commit()
        return record

    def prepare_update(
        self,
        name: str,
        update: Update,
        grown: Tensor,
        averages: Sequence[Average],
        stale: bool,
        kept: Kept | None = None,
    ) -> Iterator[Change]:
        """Prepare to carry out `update` of a layer, with its optimizer state; nothing is changed yet.

        Args:
            stale: whether that state belongs to another topology; then it starts afresh.
            kept: that state; None looks for it.
        """
        layer, kept = self.layers[name], kept or self.kept()
        yield from prepare_update(layer, update, grown, None if stale else kept, self.grown_state, averages)
        if stale:
            yield from kept.afresh(layer.values, update.move(layer.values.detach(), grown.to(layer.values)))
        yield partial(self._note_topology, name)

    def _note_topology(self, name: str) -> None:
        self.topologies[name] = self.layers[name].last_digest

    def _meet(self) -> None:
        """Once before the first step, and once after loading: check the optimizer, and that all ranks begin alike."""
        ranks, progress = self.ranks, self.progress
        check_unchanged(self.layers, self.parameters)
        kept, self.is_checked = self.kept(), False
        for name, values in self.parameters.items():
            if not kept.fits(values):
                self.topologies[name] = NO_TOPOLOGY
        if ranks.group is not None:
            if self.algorithm.surplus is not None:
                raise count_changes(self.algorithm)
            new = not progress.step and not progress.evolutions
            everyone = self._tell(
                {
                    "evolution": comparable(self.algorithm),
                    "own evolution": repr(self.algorithm),
                    "optimizer state": {name: kept.digest(values) for name, values in self.parameters.items()},
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
        return tell(self.ranks, {**where, **own}, self._device)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).values.device

    def watch(self) -> None:
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

    def load_state_dict(self, state: Mapping[str, Any], wrapped: Any) -> None:
        """Load what `state_dict()` gave, and the wrapped optimizer's state with it.

        Args:
            state: checked.
            wrapped: the wrapped optimizer's state dict.
        Raises:
            ValueError: that does not fit, which shows only now where an optimizer has a format of its own.
        """
        settle(self)
        before = [(part, part.state_dict()) for _, part in self._stateful()]
        topologies: dict[str, Digest] = {name: tuple(of) for name, of in state["topology"].items()}
        layers = {name: (p, self.topologies[name], topologies[name]) for name, p in self.parameters.items()}
        self.loading = True
        try:
            for name, part in self._stateful():
                part.load_state_dict(state["schedules"][name])
            optimizer_loading.load(self.optimizer, wrapped, layers, self.kept)
        except Exception:
            for part, old in before:
                part.load_state_dict(old)
            self.loading = False
            raise
        self.progress.load_state_dict(state)
        self.topologies, self.recorders = topologies, {}
        self.resets = {name: layer.resets for name, layer in self.layers.items()}
        self.ranks.met = False
        self.watch()
        self.loading = False

    def __getstate__(self) -> dict[str, Any]:
        settle(self)
        return {**vars(self), "recorders": {}, "swap": None, "_around": [], "_inner": None, "old_weights": []}

    def _stateful(self) -> list[tuple[str, Any]]:
        """The rules and schedules that have state of their own, as a user's may; ours have none."""
        return [(name, part) for name, part in vars(self.algorithm).items() if hasattr(part, "load_state_dict")]

    def stale(self) -> list[str]:
        """The layers whose topology was replaced under their optimizer state (`load_state_dict`, `trim`)."""
        return [name for name, layer in self.layers.items() if layer.digest != self.topologies[name]]


def _say_afresh(names: Sequence[str]) -> None:
    if names:
        warn(
            f"The topologies of {', '.join(map(repr, names))} are not those that their optimizer state belongs to: it "
            "starts afresh. To resume training, load model and optimizer from the same checkpoint."
        )
