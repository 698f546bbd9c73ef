"""Train any PyTorch model truly sparse: `model, optimizer = sparsify(model, optimizer, density=0.1)`."""

from sparsify.api import sparsify
from sparsify.conversion.distributions import epsilon, erdos_renyi, uniform
from sparsify.conversion.planning import plan, summary
from sparsify.evolution import GMP, SET, Evolution, GraNet, RigL, Static, coin, constant, cosine
from sparsify.evolution.grown_values import fan_in_uniform, zeros
from sparsify.interchange import densify
from sparsify.layers.attention import SparseMultiheadAttention
from sparsify.layers.linear import SparseLinear
from sparsify.training.following import follow
from sparsify.training.optimizer import SparseOptimizer
from sparsify.training.trimming import trim

__version__ = "0.1.0"

__all__ = [
    "GMP",
    "SET",
    "Evolution",
    "GraNet",
    "RigL",
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
    "plan",
    "sparsify",
    "summary",
    "trim",
    "uniform",
    "zeros",
]
