"""Evolution: algorithms, and the rules and schedules they are made of."""

from sparsify._src.evolution import *  # noqa: F403
from sparsify._src.evolution import __all__ as __all__
