"""Evolution: algorithms, the rules and schedules they are made of, and the pure core."""

from sparsify.evolution.algorithms import SET, Evolution, Static
from sparsify.evolution.drop import weakest_per_sign
from sparsify.evolution.growth import uniformly
from sparsify.evolution.schedules import coin

__all__ = ["SET", "Evolution", "Static", "coin", "uniformly", "weakest_per_sign"]
