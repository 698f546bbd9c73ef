"""Evolution: algorithms, the rules and schedules they are made of, and the pure core."""

from sparsify.evolution.algorithms import SET, Evolution, Static
from sparsify.evolution.drop import weakest_per_sign
from sparsify.evolution.growth import fan_in_uniform, uniformly, zeros
from sparsify.evolution.schedules import coin

__all__ = ["SET", "Evolution", "Static", "coin", "fan_in_uniform", "uniformly", "weakest_per_sign", "zeros"]
