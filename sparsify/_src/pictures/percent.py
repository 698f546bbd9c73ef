"""Accuracies in percent, and how much of their axis is shown."""

from collections.abc import Mapping, Sequence

from sparsify._src.checks import shown

LEAST_SPAN = 5.0
"""Points of accuracy that an axis shows at least, so that what is due to chance stays small."""


def span(low: float, high: float, least: float) -> tuple[float, float]:
    """The ends of an axis in percent that shows low to high: at least `least` points long, and within 0 and 100."""
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    if high - low < least:
        low = min((low + high - least) / 2, 100 - least)
        low, high = max(0.0, low), max(0.0, low) + least
    return max(0.0, low), min(100.0, high)


def check_percent(argument: str, results: Mapping[str, Sequence[float]]) -> None:
    """Raise ValueError unless results are accuracies in percent, some for each name."""
    if not results or not all(results.values()):
        raise ValueError(f"{argument} must hold accuracies for each name, got {shown(results)}.")
    numbers = [each for accuracies in results.values() for each in accuracies]
    if not all(0 <= each <= 100 for each in numbers):
        wrong = next(each for each in numbers if not 0 <= each <= 100)
        raise ValueError(f"{argument} must be accuracies in percent, got {wrong}.")
    if max(numbers) <= 1:
        raise ValueError(f"{argument} must be in percent, got {max(numbers)} at most. Multiply shares by 100.")
