"""Checks that the parameters of sparse layers are still those that the optimizer holds."""

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from sparsify._src.distributed import SHARDED
from sparsify._src.layers.map import SparseMap
from sparsify._src.native.library import has_memory


def check_unchanged(layers: Mapping[str, SparseMap], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise unless the values of every layer are still the parameter that they were."""
    for name, layer in layers.items():
        values = layer._parameters.get("values")
        if type(values).__name__ == "DTensor":
            raise TypeError(f"values must be whole on every rank, got a DTensor in layer {name!r}: {SHARDED}")
        if values is not parameters[name]:
            raise ValueError(
                f"values must stay the parameter that sparsify() made, got another in layer {name!r}. Undo what has "
                "replaced it (pruning, parametrization, an assignment), or write the new values into the old one. "
                f"If it was sharded: {SHARDED}"
            )
        if not has_memory(values):
            raise ValueError(f"values must be in memory, got those of layer {name!r} without: its storage was freed.")


def check_held(optimizer: Optimizer, layers: Mapping[str, SparseMap]) -> None:
    """Raise unless `optimizer` holds the values of every layer, whole."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if type(layer.values).__name__ == "DTensor":
            raise TypeError(f"values must be whole on every rank, got a DTensor in layer {name!r}: {SHARDED}")
        if id(layer.values) not in held:
            raise ValueError(
                f"optimizer must hold the values of every sparse layer, got none of layer {name!r}. If they were "
                f"replaced after sparsify(): {SHARDED}"
            )
