"""What is known of a topology that was checked."""

from typing import NamedTuple

from sparsify._src.topology import Digest, Indices


class Checked(NamedTuple):
    """A topology that was checked. A layer makes a new one whenever its topology changes.

    indices: the very tensors that were checked.
    writes: how often these have been written to.
    digest: what tells topologies apart.
    """

    indices: Indices
    writes: int
    digest: Digest
