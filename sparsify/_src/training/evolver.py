"""`Evolver`: evolves the layers of one optimizer, step by step; `SparseOptimizer` is its face."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsify._src.distributed import Ranks
from sparsify._src.evolution.layer_view import needs_gradient
from sparsify._src.layers import averaging
from sparsify._src.layers.map import SparseMap
from sparsify._src.swap import Swap, leaving_grad_mode, settle
from sparsify._src.training import evolver_state, replaced_topologies
from sparsify._src.training.agreement import agree_who_evolves, begin_alike
from sparsify._src.training.choices import Choices
from sparsify._src.training.evolved_layers import EvolvedLayer
from sparsify._src.training.evolving import Ready, prepare_evolution
from sparsify._src.training.explored import Explored
from sparsify._src.training.foreign_writes import ForeignWrites
from sparsify._src.training.gradients import Gradients
from sparsify._src.training.old_weights import OldWeights, warn_of_old_weights
from sparsify._src.training.parameters import check_held, check_unchanged
from sparsify._src.training.progress import Progress
from sparsify._src.training.record import Record
from sparsify._src.training.remarks import Remarks
from sparsify._src.training.resting import with_gradient
from sparsify._src.training.stepping_optimizers import SteppingOptimizers


class Evolver:
    """What evolves the topologies of `layers`, and moves the buffers of `optimizer` with them.

    Args:
        optimizer: holds the `values` of the layers.
        layers, targets: as `SparseOptimizer` has them.
        choices: how they evolve.
    Attributes:
        evolved: the layers by name, and which topologies the optimizer's buffers belong to.
        gradients: what the evolution that comes next may use of them.
        progress: where evolution stands.
        ranks: the processes that train replicas of the model.
        loading: whether loading a state dict was begun, and not finished.
        old_weights: dense weights that the layers have replaced.
        foreign: watches what other code writes into the layers between steps.
        remarks: on saving, evaluating and resetting the layers, made by `take_charge`.
        is_checked: whether what the optimizer keeps was found to be elementwise, after a step.
    """

    swap: Swap | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Mapping[str, SparseMap],
        choices: Choices,
        targets: Mapping[str, int],
    ) -> None:
        check_held(optimizer, layers)
        self.choices, self.algorithm, self.optimizers = choices, choices.evolution, SteppingOptimizers(optimizer)
        self.evolved = {name: EvolvedLayer.of(name, layer) for name, layer in layers.items()}
        self.gradients = Gradients(self.evolved)
        counts = {name: (layer.nnz, targets.get(name, layer.nnz)) for name, layer in layers.items()}
        explored = {name: Explored(layer.flat(), layer.shape) for name, layer in layers.items()}
        seed = torch.initial_seed() if choices.seed is None else choices.seed
        self.progress = Progress(seed, counts, explored, due=self.algorithm.due(1))
        self.ranks = Ranks()
        self.loading = self.is_checked = False
        self.old_weights: OldWeights = []
        self.foreign = ForeignWrites(layers)
        self._reached: set[str] = set()

    @property
    def layers(self) -> dict[str, SparseMap]:
        """The layers by name."""
        return {name: each.layer for name, each in self.evolved.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The values of the layers by name."""
        return {name: each.values for name, each in self.evolved.items()}

    @leaving_grad_mode
    def begin_step(self) -> None:
        """Before the optimizer steps: its buffers must belong to the topologies, and all ranks must begin alike."""
        self._prepare_step()
        old, self.old_weights = self.old_weights, []
        warn_of_old_weights(old)
        self.remarks.stepped()
        if stale := replaced_topologies.stale(self.evolved):
            kept = self.optimizers.kept()
            with replaced_topologies.saying_afresh(stale, kept):
                Swap(replaced_topologies.prepare_afresh(stale, kept), [self]).commit()
        self._reached = self._with_gradient()

    def inner_step(self) -> None:
        """An optimizer inside another has stepped: the other may zero the gradients before it is done."""
        self._reached |= self._with_gradient()
        if self.progress.due:
            self.gradients.keep(self.ranks.group is None)
        self.foreign.note()

    @leaving_grad_mode
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
        due = self.algorithm.due(progress.step + 1) or progress.catches_up(self.algorithm, self._counts_of_able)
        record = None
        if progress.due:
            record = self._evolve(self._ready_layers(progress.trained, grows=not progress.is_late(self.algorithm)), due)
        progress.due = due
        self.gradients.end_step()
        self.watch()
        self.foreign.note()
        if record is not None:
            self.remarks.note(record)
            self.choices.tell(record)

    def evolve(self) -> Record:
        """Evolve now, whatever the schedule says."""
        self._prepare_step()
        can_train = self.optimizers.able(self.parameters)
        ready = self._ready_layers(can_train & (self.progress.trained | self._with_gradient()) or can_train)
        if can_train and not ready:
            raise ValueError("evolve() must follow a backward pass, as its rules need gradients, got none.")
        with replaced_topologies.saying_afresh(
            [each for each in replaced_topologies.stale(self.evolved) if each.name in ready], self.optimizers.kept()
        ):
            record = self._evolve(ready)
            self.foreign.note()
        self.choices.tell(record)
        return record

    def make_whole(self) -> None:
        """Raise RuntimeError where an interruption has left something half done; finish what can be finished."""
        settle(self)
        if self.loading:
            raise RuntimeError(
                "optimizer must have a whole state, got one whose loading was interrupted. Load the checkpoint again."
            )
        if reset := {name: each for name, each in self.evolved.items() if each.was_reset}:
            Swap(replaced_topologies.prepare_reset(reset, self.optimizers.kept(), self.progress), [self]).commit()
            self.ranks.met = False  # they may have drawn different topologies
            self.remarks.is_anew |= len(reset) == len(self.evolved)

    def _prepare_step(self) -> None:
        self.make_whole()
        for name, each in self.evolved.items():
            averaging.see_to_copies(name, each.layer)
        self.foreign.look()
        if not self.ranks.met:
            self._begin_alike()

    def take_charge(self) -> None:
        """From now on this is what evolves the layers."""
        self.remarks = Remarks(self.algorithm, self.progress, self.choices.steps, self.layers)
        for layer in self.layers.values():
            layer.remarks = self.remarks if self.remarks.may_speak else None
        self.watch()

    def take_after(self, other: "Evolver") -> None:
        """Go on where another evolver of the same optimizer is, but for steps, history and algorithm."""
        for each in self.evolved.values():  # buffers may belong to other topologies than the layers have
            known = next((known for known in other.evolved.values() if known.layer is each.layer), each)
            each.topology, each.resets = known.topology, known.resets
        self.ranks, self.optimizers = copy.deepcopy(other.ranks), other.optimizers.copy()
        self.old_weights = [*other.old_weights]

    def _with_gradient(self) -> set[str]:
        """Of the layers that have not trained since the last evolution: those that a step trains now."""
        trained = self.progress.trained
        if len(trained) == len(self.evolved):
            return set()
        found = with_gradient({name: each.values for name, each in self.evolved.items() if name not in trained})
        return found & self.optimizers.able(self.parameters) if found else found

    def _counts_of_able(self) -> dict[str, int]:
        return {name: self.evolved[name].layer.nnz for name in self.optimizers.able(self.parameters)}

    def _ready_layers(self, trained: Collection[str], grows: bool = True) -> Ready:
        """Of the `trained` layers those that can train, and have a gradient where a rule needs it; on all ranks."""
        algorithm, gradients = self.algorithm, self.gradients.made(self.ranks.group is None)
        ready = self.optimizers.able(self.parameters) & set(trained)
        if any(map(needs_gradient, [algorithm.drop, algorithm.scope, *[algorithm.grow] * grows])):
            ready &= gradients.keys()
        return agree_who_evolves(self.ranks, self.layers, self.progress, ready, gradients)

    def _evolve(self, ready: Ready, due: bool | None = None) -> Record:
        """Drop and grow: everything is prepared, and then carried out as a whole.

        Args:
            due: whether evolution comes after the next step; None where the user has asked for this one.
        """
        algorithm, progress = self.algorithm, self.progress
        check_unchanged(self.layers, self.parameters)
        fraction = 0.0 if due is not None and progress.is_late(algorithm) else algorithm.fraction(progress.step)
        kept = self.optimizers.kept()
        updates, changes, owners = prepare_evolution(
            self.choices, progress, self.ranks, self.evolved, ready, kept, fraction
        )
        record, noting = progress.prepare_record(fraction, updates, changes, self.layers, due)
        Swap([*changes, noting, *[self.watch] * (due is not None)], [self, *owners]).commit()
        return record

    def _begin_alike(self) -> None:
        """Once before the first step, and once after loading: check the optimizer, and that all ranks begin alike."""
        check_unchanged(self.layers, self.parameters)
        kept, self.is_checked = self.optimizers.kept(), False
        replaced_topologies.distrust_what_does_not_fit(self.evolved.values(), kept)
        if self.ranks.group is not None:
            begin_alike(self.ranks, self.evolved, self.progress, self.algorithm, kept)
        self.ranks.met = True

    def watch(self) -> None:
        """Keep the operands of the backward passes, where the evolution that comes next needs them."""
        coming = self.progress.due or self.algorithm.interval is None
        self.gradients.record(coming and needs_gradient(self.algorithm.grow))

    def load_state_dict(self, state: Mapping[str, Any], wrapped: Any) -> None:
        """Load a checked state of `evolver_state`, and the `wrapped` optimizer's.

        Raises:
            ValueError: that does not fit, which shows only now where an optimizer has a format of its own.
        """
        settle(self)
        self.loading = True
        try:
            evolver_state.load_optimizer(self, state, wrapped, self.optimizers)
        except Exception:
            self.loading = False
            raise
        evolver_state.load_progress(self, state)
        self.gradients.record(False)
        self.ranks.met = False
        self.watch()
        self.loading = False

    def __getstate__(self) -> dict[str, Any]:
        settle(self)
        kept = {name: value for name, value in vars(self).items() if name != "remarks"}
        return {**kept, "swap": None, "old_weights": []}
