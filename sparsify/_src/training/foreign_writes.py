"""Warns where other code writes values into a trained layer that belong to connections it no longer has.

What was saved or averaged by name, position by position, before the topology evolved belongs to the connections of that
time. Nothing in a tensor says so, but its numbers do: where the last evolution has put another connection, what comes
from before does not resemble what was there a moment ago, or holds a share of what was there before the evolution. What
people write rightly (clamping, projections, noise, averages that evolve along) does neither.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from sparsify._src.evolution.update import Update
from sparsify._src.kernels.operands import is_direct
from sparsify._src.layers import averaging, copies, registry
from sparsify._src.layers.checked import Checked
from sparsify._src.layers.map import SparseMap
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.layers.samples import ALIKE, Sample, Samples, at, compare, is_share, spread
from sparsify._src.swap import Change
from sparsify._src.training import strangers
from sparsify._src.training.parameters import check_unchanged
from sparsify._src.vectors import has_numbers
from sparsify._src.warning import warn

COUNT = 64
"""Numbers of each layer that are looked at."""

LOOKED_THROUGH = 16_384
"""Positions among which they are looked for, unless these are too few."""

ALWAYS, EACH = 64, 16
"""Of the forward passes without gradients after a step, which are looked at: so many, and then each 16th."""


class Seen(Sample):
    """A sample of a layer's values after a step, where the last evolution has put other connections.

    Attributes:
        before: what was there before that; None where the layer had another number of connections.
        checked: the topology that the values belong to.
        owner: sees to them; None until it has made a step since.
    """

    def __init__(self, values: Tensor, positions: Tensor, before: Tensor | None) -> None:
        super().__init__(values, positions)
        self.before = before
        self.checked: Checked | None = None
        self.owner: ReferenceType[ForeignWrites] | None = None
        self.looks = 0

    def look(self, layer: SparseMatrix) -> None:
        """Warn if `layer`, about to compute something without gradients, has the values of other connections."""
        self.looks += 1
        if (self.looks > ALWAYS and self.looks % EACH) or self.owner is None or self.checked is not layer._checked:
            return
        values, owner = layer._parameters.get("values"), self.owner()
        if owner is None or not isinstance(values, Tensor) or not is_direct(values, values, None):
            return
        try:
            contradicted = self.is_contradicted("", layer, values)
        except (IndexError, RuntimeError):
            if self._is_current(layer):
                raise
            return  # another thread has changed the layer meanwhile
        if contradicted and self._is_current(layer):
            owner.warn_once()

    def _is_current(self, layer: SparseMatrix) -> bool:
        """Whether no thread has changed, or is changing, what was seen."""
        return layer.observer is self and self.checked is layer._checked and not layer.is_changing()

    def is_contradicted(self, name: str, layer: SparseMatrix, values: Tensor | None = None) -> bool:
        """Whether the values of `layer`, or what stands for them, are of other connections than it has."""
        values = layer.values if values is None else values
        if not has_numbers(values) or len(values) != self.length:
            return False  # an error by itself
        now, seen = at(values, self.positions), self.numbers
        if (now.dtype == seen.dtype and torch.equal(now, seen)) or not self._differs(now):
            return False
        if self.checked is not layer._checked or not layer.is_checked():
            return False
        averages = [at(each, self.positions) for each in averaging.values_of(name, layer) if len(each) == self.length]
        return not any(_is_close(each, seen) or _is_close(each, now) for each in averages)  # exchanged, or copied

    def _differs(self, now: Tensor) -> bool:
        before = self.numbers if self.before is None else self.before
        likeness, share = compare(now, self.numbers, before, least=0.01)
        return (likeness is not None and abs(likeness) < ALIKE) or is_share(share, len(now))


def prepare_observer(layer: SparseMatrix, update: Update) -> Change:
    """Prepare to watch the values of `layer` where `update` puts other connections."""
    values, positions = layer.values.detach(), _moved(update)
    before = at(values, positions) if len(update.origin) == update.old_nnz else None
    return partial(_see, layer, positions, before)


def _see(layer: SparseMatrix, positions: Tensor, before: Tensor | None) -> None:
    layer.observer = Seen(layer.values, positions, before) if len(positions) else None


def _moved(update: Update) -> Tensor:
    """Some of the positions at which another connection stands after `update`."""
    length, origin = min(update.old_nnz, len(update.origin)), update.origin
    positions = torch.arange(0, length, max(1, length // LOOKED_THROUGH), device=origin.device)
    moved = positions[origin[positions] != positions]
    if len(moved) < COUNT and len(positions) < length:
        moved = (origin[:length] != torch.arange(length, device=origin.device)).nonzero().squeeze(1)
    return moved[spread(len(moved), COUNT, moved.device)]


class ForeignWrites:
    """Watches what other code writes into the layers of one optimizer between its steps.

    Args:
        layers: name -> layer.
    """

    def __init__(self, layers: Mapping[str, SparseMap]) -> None:
        self.layers = dict(layers)
        self._varied = [(name, layer, layer._checked) for name, layer in layers.items() if _varies(layer.values)]
        copies.forget(layers.values())
        self._begin()

    def _begin(self) -> None:
        self.has_stepped = False
        self._values: list[Any] = [layer._parameters.get("values") for layer in self.layers.values()]
        self._seen: list[Seen | None] = [None] * len(self.layers)
        self._samples: Samples | None = None
        self._has_warned = False
        self._reference = ref(self)
        registry.trains(self)

    def look(self) -> None:
        """Before a step: warn if values were overwritten with values of other connections.

        Raises:
            ValueError: another parameter stands in a layer.
        """
        for (name, layer), values in zip(self.layers.items(), self._values, strict=True):
            held = layer._parameters.get("values")
            if held is not values and held is not None:
                check_unchanged({name: layer}, {name: values})
        if not self.has_stepped:
            self.has_stepped = True
            copies.forget(self.layers.values())
            for layer in self.layers.values():
                if not isinstance(layer.observer, Seen):
                    layer.observer = None
            self._check_first_values()
            strangers.look_around(self.layers)
        elif self._samples is not None and self._samples.have_changed():
            self.warn_once()

    def warn_once(self) -> None:
        """Warn of layers that have the values of other connections, unless that was done since the last step."""
        if self._has_warned:
            return
        pairs = zip(self.layers.items(), self._seen, strict=True)
        found = [name for (name, layer), seen in pairs if seen and seen.is_contradicted(name, layer)]
        if found:
            self._has_warned = True
            _warn_of_other_connections(found)

    def note(self) -> None:
        """After a step: remember a sample of the values, to notice what other code writes."""
        seen = [layer.observer if isinstance(layer.observer, Seen) else None for layer in self.layers.values()]
        if seen != self._seen:
            self._seen = seen
            known = [each for each in seen if each is not None]
            self._samples = Samples(known) if known else None
        if self._samples is not None:
            self._samples.take()
            for layer, each in zip(self.layers.values(), seen, strict=True):
                if each is not None:
                    each.checked, each.owner, each.looks = layer._checked, self._reference, 0
        self._has_warned = False

    def _check_first_values(self) -> None:
        """Warn where something has made all values of a layer the same since it became sparse."""
        same = [
            name
            for name, layer, checked in self._varied
            if checked is layer._checked and layer.is_checked() and not _varies(layer.values)
        ]
        self._varied = []
        if same:
            warn(
                f"All values of {', '.join(map(repr, same))} are the same number: a function that initialises "
                "parameters has taken them for biases, because a sparse layer's values are a vector. Initialise the "
                "model before sparsify(), or call reset_parameters() of its sparse layers afterwards."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers, self._varied = state["layers"], []
        self._begin()


def _varies(values: Tensor) -> bool:
    """Whether values differ from one another."""
    return has_numbers(values) and len(values) > 1 and bool((values.detach() != values.detach()[0]).any())


def _is_close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return torch.allclose(one.to(other), other, rtol=0, atol=1e-6 * scale)


def _warn_of_other_connections(names: list[str]) -> None:
    warn(
        f"The values of {', '.join(map(repr, names))} were overwritten with such of other connections: what was saved "
        "or averaged by parameter name before the topology evolved belongs to the connections of that time. Save and "
        "load model.state_dict(), average a copy of the model (copy.deepcopy, AveragedModel), or say once which "
        "averages are kept by name: sparsify.follow(averages, model)."
    )
