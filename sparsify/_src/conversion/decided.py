"""`Decision`: what becomes of each linear map of a model."""

from typing import NamedTuple

from torch import Tensor

from sparsify._src.conversion.eligibility import Kind, Reason
from sparsify._src.conversion.linear_maps import LinearMap
from sparsify._src.layers.map import SparseMap


class Decision(NamedTuple):
    """What becomes of each linear map of a model.

    maps: the dense ones.
    reasons: why those that stay dense do.
    first: of each that becomes sparse, its connections at first: how many, or which (sorted flat indices).
    existing: the layers that are sparse already, and go on.
    pruned: the names of those of them that share the density, and are pruned down to it.
    targets: connections in the end, of all that are sparse then.
    sharing: the names of all that share one density.
    """

    maps: dict[str, LinearMap]
    reasons: dict[str, Reason]
    first: dict[str, int | Tensor]
    existing: dict[str, SparseMap]
    pruned: set[str]
    targets: dict[str, int]
    sharing: set[str]

    @property
    def has_full(self) -> bool:
        """Whether a linear map stays dense because its share of the density is 1."""
        return any(reason.kind is Kind.FULL for reason in self.reasons.values())
