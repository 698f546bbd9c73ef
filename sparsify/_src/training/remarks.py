"""What a user should know who saves, densifies or evaluates a model while its topology changes, or resets it after."""

import math
from collections.abc import Mapping
from weakref import WeakSet

from sparsify._src.evolution.evolution import Evolution
from sparsify._src.layers.map import SparseMap
from sparsify._src.training.progress import Progress
from sparsify._src.training.record import Record
from sparsify._src.warning import warn

RECOVERS = 3
"""Steps after an evolution in which accuracy comes back."""


class Remarks:
    """Remarks on the layers of one optimizer, each made once, but for those on resets.

    Args:
        algorithm, progress, steps: of the optimizer.
        layers: which it evolves.
    Attributes:
        is_anew: whether all layers have been reset since the last step.
    """

    def __init__(
        self, algorithm: Evolution, progress: Progress, steps: int | None, layers: Mapping[str, SparseMap]
    ) -> None:
        self.algorithm, self.progress, self.layers = algorithm, progress, WeakSet(layers.values())
        self.steps = steps
        self.evolved_at: int | None = None
        self.made: set[str] = set()
        self.is_anew = False

    @property
    def may_speak(self) -> bool:
        """Whether there may be something to say to who uses a layer: where pruning goes on, or evolution has no end."""
        return self.algorithm.prunes or self.algorithm.until is None

    def note(self, record: Record) -> None:
        """An evolution has come by the schedule."""
        if self.algorithm.until is None and any(record.dropped.values()):
            self.evolved_at = record.step

    def trained(self) -> None:
        """A layer is used in training, of which there is nothing to say."""

    def stepped(self) -> None:
        """A step comes: say it if training goes on for much longer than `steps` said, or if all layers were reset, as
        for a new training, when evolution has ended."""
        if self.steps is not None and self.progress.step == 2 * self.steps:
            warn(
                f"Training goes on for more than twice the {self.steps:,} steps that sparsify(..., steps=) was told: "
                "evolution is long over. It counts optimizer steps, not epochs: len(loader) * epochs."
            )
        is_anew, self.is_anew = self.is_anew, False
        until, step = self.algorithm.until, self.progress.step
        if is_anew and until is not None and step >= until:
            warn(
                f"All sparse layers were reset, but their topologies stay: {self.algorithm!r} has ended, as {step:,} "
                "steps are done. For a new training, such as the next fold, call sparsify(model, optimizer, "
                "steps=..., evolution=...): steps and history begin anew."
            )

    @property
    def density(self) -> float:
        """Share of all places of the layers that are connections."""
        return sum(layer.nnz for layer in self.layers) / max(1, self._places)

    @property
    def target(self) -> float:
        """The density in the end."""
        return sum(last for _, last in self.progress.counts.values()) / max(1, self._places)

    @property
    def _places(self) -> int:
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def summary(self) -> str:
        """What evolves the layers, and how far it has come."""
        of = f"{self.algorithm!r} of {len(self.layers)} sparse layers"
        done = f"{self.progress.evolutions:,} evolutions in {self.progress.step:,} steps"
        return f"{of}: {done}, {self.standing}"

    @property
    def standing(self) -> str:
        """Where pruning stands: "density 0.49 now, 0.05 at step 45,000"; the density alone where that stays."""
        if not self.is_pruning:
            return f"density {self.density:.3g}"
        step = self.algorithm.target_step
        when = f"at step {step:,}" if step and step > self.progress.step else "in the end"
        return f"density {self.density:.3g} now, {self.target:.3g} {when}"

    @property
    def is_pruning(self) -> bool:
        """Whether the layers have more connections than they are to have in the end."""
        return self.algorithm.prunes and self.density > self.target

    @property
    def _way_out(self) -> str:
        """What to do where a model is used that is still being pruned."""
        end = self.algorithm.target_step
        if end is None or end <= self.progress.step:
            return "If training is over, say how long it is: sparsify(..., steps=...)."
        return (
            f"To keep the best model, compare those after step {end:,}. If training is over, it was shorter than "
            "steps= or until= said."
        )

    @property
    def unfinished(self) -> str | None:
        """What pruning has still to do; None where it has reached its target, and where nothing is pruned."""
        return f"still being pruned: {self.standing}" if self.is_pruning else None

    def saved(self, how: str = "saved") -> None:
        """Say it if pruning has not reached its target: a layer is saved, or made dense."""
        if (unfinished := self.unfinished) and how not in self.made:
            self.made.add(how)
            warn(f"The model that is {how} is {unfinished}; {self.progress.step:,} steps are done. {self._way_out}")

    def evaluated(self) -> None:
        """Say it if evolution has just worsened the model and has no known end: a layer is used without training."""
        since = None if self.evolved_at is None else self.progress.step - self.evolved_at
        if since is None or since >= RECOVERS or "evaluated" in self.made:
            return
        self.made.add("evaluated")
        dropped = self.progress.history[-1].drop_fraction
        after = f"{since} steps after" if since > 1 else "one step after" if since else "right after"
        warn(
            f"The model is evaluated {after} an evolution, in which {dropped:.0%} of its connections made room for new "
            "ones, which start at zero: it is worse than before it, and than it is a few steps later. Say how long "
            "training is, sparsify(..., steps=...), or until=...: then evolution ends before training does."
        )
