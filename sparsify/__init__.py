"""Train any PyTorch model truly sparse: `model, optimizer = sparsify(model, optimizer, density=0.1)`."""

from sparsify.api import sparsify
from sparsify.attention import SparseMultiheadAttention
from sparsify.distributions import epsilon, erdos_renyi, uniform
from sparsify.evolution import GMP, SET, Evolution, GraNet, RigL, Static, coin, constant, cosine
from sparsify.following import follow
from sparsify.initialization import fan_in_uniform, zeros
from sparsify.interchange import densify
from sparsify.linear import SparseLinear
from sparsify.optimizer import SparseOptimizer
from sparsify.planning import plan, summary
from sparsify.trimming import trim

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
