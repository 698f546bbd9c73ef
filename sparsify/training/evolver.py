"""`Evolver`: evolves the layers of one optimizer, step by step; `SparseOptimizer` is its face."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsify.distributed import Ranks
from sparsify.evolution.algorithms import Evolution
from sparsify.evolution.layer_view import needs_gradient
from sparsify.layers import averaging
from sparsify.layers.linear import SparseLinear
from sparsify.swap import Swap, settle
from sparsify.topology import Digest
from sparsify.training import evolver_state, optimizer_loading
from sparsify.training.agreement import agree_who_evolves, begin_alike
from sparsify.training.evolved_layers import NO_TOPOLOGY, EvolvedLayer
from sparsify.training.evolving import Ready, prepare_evolution
from sparsify.training.explored import Explored
from sparsify.training.foreign_writes import ForeignWrites
from sparsify.training.gradients import Gradients
from sparsify.training.old_weights import OldWeights, warn_of_old_weights
from sparsify.training.optimizer_state import GrownState
from sparsify.training.parameters import check_held, check_unchanged
from sparsify.training.progress import Progress, Record
from sparsify.training.replaced_topologies import prepare_afresh, prepare_reset, say_afresh, with_state
from sparsify.training.resting import with_gradient
from sparsify.training.stepping_optimizers import SteppingOptimizers


class Evolver:
    """What evolves the topologies of `layers`, and moves the buffers of `optimizer` with them.

    Args:
        optimizer: holds the `values` of the layers.
        layers, algorithm, grown_state, seed, targets: as `SparseOptimizer` has them.
    Attributes:
        evolved: the layers by name, and which topologies the optimizer's buffers belong to.
        gradients: what the evolution that comes next may use of them.
        progress: where evolution stands.
        ranks: the processes that train replicas of the model.
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
        self.algorithm, self.grown_state, self.optimizers = algorithm, grown_state, SteppingOptimizers(optimizer)
        self.evolved = {name: EvolvedLayer.of(name, layer) for name, layer in layers.items()}
        self.gradients = Gradients(self.evolved)
        self.progress = Progress(
            seed=seed,
            counts={name: (layer.nnz, targets.get(name, layer.nnz)) for name, layer in layers.items()},
            explored={name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()},
            due=algorithm.due(1),
        )
        self.ranks = Ranks()
        self.loading = False
        self.old_weights: OldWeights = []
        self.is_checked = False
        self.foreign = ForeignWrites(layers)
        self._reached: set[str] = set()

    @property
    def optimizer(self) -> Any:
        """The one that was wrapped."""
        return self.optimizers.optimizer

    @property
    def layers(self) -> dict[str, SparseLinear]:
        """The layers by name."""
        return {name: each.layer for name, each in self.evolved.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The values of the layers by name."""
        return {name: each.values for name, each in self.evolved.items()}

    def begin_step(self) -> None:
        """Before the optimizer steps: its buffers must belong to the topologies, and all ranks must begin alike."""
        self._prepare()
        if self.old_weights:
            old, self.old_weights = self.old_weights, []
            warn_of_old_weights(old)
        if stale := self.stale():
            kept = self.optimizers.kept()
            had_any = with_state(stale, kept)
            Swap(prepare_afresh(stale, kept), [self]).commit()
            say_afresh(had_any)
        self._reached = self._with_gradient()

    def inner_step(self) -> None:
        """An optimizer inside another has stepped: the other may zero the gradients before it is done."""
        self._reached |= self._with_gradient()
        if self.progress.due:
            self.gradients.keep(self.ranks.group is None)
        self.foreign.note()

    def end_step(self) -> None:
        """After the optimizer has stepped: evolve where that is due."""
        progress = self.progress
        progress.step += 1
        progress.trained |= self._reached | self._with_gradient()  # a closure has made some in the meantime
        self._reached = set()
        self.gradients.stepped()
        if not self.is_checked:
            self.optimizers.kept().check(self.parameters)
            self.is_checked = True
        due = self.algorithm.due(progress.step + 1) or self._catches_up(progress.step + 1)
        if progress.due:
            self._evolve(self._ready(progress.trained, grows=not self._is_late), due)
        progress.due = due
        self.gradients.end_step()
        self.watch()
        self.foreign.note()

    def evolve(self) -> Record:
        """Evolve now, whatever the schedule says."""
        self._prepare()
        can_train = self.optimizers.able(self.parameters)
        ready = self._ready(can_train & (self.progress.trained | self._with_gradient()) or can_train)
        if can_train and not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        had_any = with_state([each for each in self.stale() if each.name in ready], self.optimizers.kept())
        record = self._evolve(ready)
        self.foreign.note()
        say_afresh(had_any)
        return record

    def check_whole(self) -> None:
        """Raise RuntimeError where an interruption has left something half done; finish what can be finished."""
        settle(self)
        if self.loading:
            raise RuntimeError(
                "optimizer must have a whole state, got one whose loading was interrupted. Load the checkpoint again."
            )
        if reset := {name: each for name, each in self.evolved.items() if each.was_reset}:
            Swap(prepare_reset(reset, self.optimizers.kept(), self.progress), [self]).commit()
            self.ranks.met = False  # they may have drawn different topologies

    def _prepare(self) -> None:
        self.check_whole()
        for name, each in self.evolved.items():
            averaging.check(name, each.layer)
        self.foreign.check()
        if not self.ranks.met:
            self._begin_alike()

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
        before = {each.layer: each for each in self.evolved.values()}
        for each in new.evolved.values():
            if (known := before.get(each.layer)) is not None:  # its buffers may belong to another topology than it has
                each.topology, each.resets = known.topology, known.resets
        new.ranks, new.old_weights = copy.deepcopy(self.ranks), [*self.old_weights]
        new.optimizers = self.optimizers.copy()
        return new

    def _with_gradient(self) -> set[str]:
        """Of the layers that have not trained since the last evolution: those that a step trains now."""
        trained = self.progress.trained
        if len(trained) == len(self.evolved):
            return set()
        found = with_gradient({name: each.values for name, each in self.evolved.items() if name not in trained})
        return found & self.optimizers.able(self.parameters) if found else found

    def _catches_up(self, step: int) -> bool:
        """Whether layers that did not train while others were pruned are pruned after `step`, later than `until`."""
        if self.algorithm.surplus is None or not self.algorithm.is_late(step):
            return False
        able = self.optimizers.able(self.parameters)
        excess = (self.progress.excess(self.algorithm, name, self.evolved[name].layer.nnz) for name in able)
        return sum(excess) > 0

    @property
    def _is_late(self) -> bool:
        """Whether evolution is over by the schedule: what still comes only prunes."""
        until = self.algorithm.until
        return until is not None and self.progress.step > until

    def _ready(self, trained: Collection[str], grows: bool = True) -> Ready:
        """The layers that evolve, with gradient and operands of backward passes where there are any.

        Of the trained those that still can; where a rule needs gradients, those that a backward pass reached. All of it
        on every rank.
        """
        algorithm, gradients = self.algorithm, self.gradients.made(self.ranks.group is None)
        ready = self.optimizers.able(self.parameters) & set(trained)
        if needs_gradient(algorithm.drop) or (grows and needs_gradient(algorithm.grow)):
            ready &= gradients.keys()
        return agree_who_evolves(self.ranks, self.layers, self.progress, ready, gradients)

    def _evolve(self, ready: Ready, due: bool | None = None) -> Record:
        """Drop and grow: everything is prepared, and then carried out as a whole.

        Args:
            due: whether evolution comes after the next step; None where the user has asked for this one.
        """
        algorithm, progress = self.algorithm, self.progress
        check_unchanged(self.layers, self.parameters)
        fraction = 0.0 if due is not None and self._is_late else algorithm.fraction(progress.step)
        kept = self.optimizers.kept()
        updates, changes, owners = prepare_evolution(
            algorithm, progress, self.ranks, self.evolved, ready, kept, fraction, self.grown_state
        )
        record, noting = progress.noting(fraction, updates, due)
        following = [] if due is None else [self.watch]
        Swap([*changes, noting, *following], [self, *owners]).commit()
        return record

    def _begin_alike(self) -> None:
        """Once before the first step, and once after loading: check the optimizer, and that all ranks begin alike."""
        check_unchanged(self.layers, self.parameters)
        kept, self.is_checked = self.optimizers.kept(), False
        for each in self.evolved.values():
            if not kept.fits(each.values):
                each.topology = NO_TOPOLOGY
        if self.ranks.group is not None:
            buffers = {name: kept.digest(each.values) for name, each in self.evolved.items()}
            begin_alike(self.ranks, self.layers, self.progress, self.algorithm, buffers)
        self.ranks.met = True

    def watch(self) -> None:
        """Keep the operands of the backward passes, where the evolution that comes next needs them."""
        coming = self.progress.due or self.algorithm.interval is None
        self.gradients.record(coming and needs_gradient(self.algorithm.grow))

    def state_dict(self) -> dict[str, Any]:
        """What evolution needs to resume bit for bit, as plain numbers, lists, dicts and tensors."""
        return evolver_state.state_dict(self.algorithm, self.progress, self.evolved)

    def check_state_dict(self, state: object) -> None:
        """Raise ValueError unless `load_state_dict` can load `state`."""
        evolver_state.check_state_dict(state, self.algorithm, self.progress, self.evolved)

    def load_state_dict(self, state: Mapping[str, Any], wrapped: Any) -> None:
        """Load what `state_dict()` gave, and the wrapped optimizer's state with it.

        Args:
            state: checked.
            wrapped: the wrapped optimizer's state dict.
        Raises:
            ValueError: that does not fit, which shows only now where an optimizer has a format of its own.
        """
        settle(self)
        topologies: dict[str, Digest] = {name: tuple(of) for name, of in state["topology"].items()}
        layers = {name: (each.values, each.topology, topologies[name]) for name, each in self.evolved.items()}
        self.loading = True
        try:
            with evolver_state.loading_schedules(self.algorithm, state):
                optimizer_loading.load(self.optimizer, wrapped, layers, self.optimizers.kept)
        except Exception:
            self.loading = False
            raise
        self.progress.load_state_dict(state)
        for name, each in self.evolved.items():
            each.topology, each.resets = topologies[name], each.layer.resets
        self.gradients.record(False)
        self.ranks.met = False
        self.watch()
        self.loading = False

    def __getstate__(self) -> dict[str, Any]:
        settle(self)
        return {**vars(self), "swap": None, "old_weights": []}

    def stale(self) -> list[EvolvedLayer]:
        """The layers whose topology was replaced under their optimizer state."""
        return [each for each in self.evolved.values() if each.is_stale]
