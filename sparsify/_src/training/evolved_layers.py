"""`EvolvedLayer`: one layer that an optimizer trains and evolves, and what is known of the optimizer's state for it."""

from dataclasses import dataclass

from torch import nn

from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Digest

NO_TOPOLOGY = (0, 0)
"""The digest of a topology that no layer has."""


@dataclass
class EvolvedLayer:
    """A layer, and which of its topologies the optimizer's buffers belong to.

    name: in the model.
    layer: the module.
    values: its parameter, which stays the same object for ever.
    topology: the digest of the topology that the buffers belong to.
    resets: how often the layer had been reset when its buffers last started afresh for that.
    """

    name: str
    layer: SparseMap
    values: nn.Parameter
    topology: Digest
    resets: int

    @classmethod
    def of(cls, name: str, layer: SparseMap) -> "EvolvedLayer":
        """One whose buffers belong to the topology that is there."""
        return cls(name, layer, layer.values, layer.digest, layer.resets)

    @property
    def is_stale(self) -> bool:
        """Whether the topology was replaced under the buffers (`load_state_dict`, `trim`, `set_topology`)."""
        return self.layer.digest != self.topology

    @property
    def was_reset(self) -> bool:
        """Whether `reset_parameters` was called since the buffers started afresh."""
        return self.layer.resets != self.resets

    def note_topology(self) -> None:
        """The buffers belong to the topology that is there now."""
        self.topology = self.layer.last_digest

    def note_reset(self) -> None:
        """The buffers have started afresh for a reset."""
        self.note_topology()
        self.resets = self.layer.resets
