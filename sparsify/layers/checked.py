"""What is known of a topology that was checked."""

from typing import NamedTuple

from sparsify.topology import Digest, Indices


class Checked(NamedTuple):
    """What is known of a topology that was checked. A layer makes a new one whenever its topology changes.

    indices: the very tensors that were checked.
    writes: how often these have been written to.
    digest: what tells topologies apart.
    """

    indices: Indices
    writes: int
    digest: Digest


def writes(indices: Indices) -> int:
    """Rises with every write to the buffers; not in inference mode."""
    crow, col, ccol, csc_row, csc_order = indices
    try:
        return crow._version + col._version + ccol._version + csc_row._version + csc_order._version
    except RuntimeError:  # tensors that were made there have no version
        return -1
