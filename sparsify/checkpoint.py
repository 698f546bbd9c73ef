"""What a state dict holds of a sparse layer's weight: a sparse checkpoint of any topology, or a dense one."""

from collections.abc import Mapping

from torch import Tensor

from sparsify import topology
from sparsify.topology import Shape

SPARSE = ("values", "crow", "col")


def read(state_dict: Mapping[str, Tensor], prefix: str, shape: Shape) -> tuple[dict[str, Tensor], list[str]]:
    """Find and check the weight of a layer of `shape`: {"weight"} of a dense checkpoint, or the `SPARSE` ones.

    Returns:
        what is found, by name without prefix, and the names that are missing.
    Raises:
        ValueError: a shape is wrong or an index corrupt.
    """
    found = {name: state_dict[prefix + name] for name in (*SPARSE, "weight") if prefix + name in state_dict}
    if found.keys() == {"weight"}:
        if tuple(found["weight"].shape) != shape:
            raise ValueError(f"weight must be {shape}, got {tuple(found['weight'].shape)}.")
        return found, []
    found.pop("weight", None)
    missing = [name for name in SPARSE if name not in found]
    if not missing:
        values = found["values"]
        if values.dim() != 1:
            raise ValueError(f"values must be a vector, got shape {tuple(values.shape)}.")
        topology.check_csr(found["crow"], found["col"], len(values), shape)
    return found, missing
