"""Train any PyTorch model truly sparse: `model, optimizer = sparsify(model, optimizer, density=0.1)`."""

import sys
from types import ModuleType
from typing import Any

from sparsify import evolution, interchange, kernels, plot, telemetry
from sparsify._src.api import sparsify
from sparsify._src.conversion.distributions import epsilon, erdos_renyi, uniform
from sparsify._src.conversion.layer_report import LayerReport
from sparsify._src.conversion.planning import plan, summary
from sparsify._src.conversion.report import Report
from sparsify._src.evolution import GMP, SET, Evolution, GraNet, RigL, Static, coin, constant, cosine
from sparsify._src.evolution.grown_values import fan_in_uniform, zeros
from sparsify._src.interchange import densify, fuse
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.convolution import SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.training.following import follow
from sparsify._src.training.optimizer import SparseOptimizer
from sparsify._src.training.record import LayerRecord, Record
from sparsify._src.training.trimming import trim

__version__ = "0.1.0"

__all__ = [
    "GMP",
    "SET",
    "Evolution",
    "GraNet",
    "LayerRecord",
    "LayerReport",
    "Record",
    "Report",
    "RigL",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseOptimizer",
    "Static",
    "coin",
    "constant",
    "cosine",
    "densify",
    "epsilon",
    "erdos_renyi",
    "fan_in_uniform",
    "follow",
    "fuse",
    "plan",
    "sparsify",
    "summary",
    "trim",
    "uniform",
    "zeros",
]


class _Face(ModuleType):
    """The package itself: `import sparsify; sparsify(model, ...)` works too, and dir() shows what is public."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return sparsify(*args, **kwargs)

    def __dir__(self) -> list[str]:
        faces = evolution, interchange, kernels, plot, telemetry
        return [*__all__, *(face.__name__.rpartition(".")[2] for face in faces)]


sys.modules[__name__].__class__ = _Face
