"""When evolution comes: `interval` may be a callable step -> bool, in optimizer steps."""

import random
from collections.abc import Callable
from functools import partial


def coin(probability: float, seed: int = 0) -> Callable[[int], bool]:
    """Flip a coin at each optimizer step: evolution comes with `probability`, at steps that `seed` fixes.

    The coin has no state: step k falls the same way in every process and after every resume.

    Args:
        probability: in [0, 1]; 0.05 is an evolution each 20 optimizer steps on average.
        seed: chooses the stream.
    Returns:
        a callable step -> bool for `interval`.
    Raises:
        ValueError: probability is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}.")
    return partial(_heads, probability, seed)


def _heads(probability: float, seed: int, step: int) -> bool:
    return random.Random(f"coin/{seed}/{step}").random() < probability
