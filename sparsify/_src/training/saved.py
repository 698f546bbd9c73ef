"""Vectors in a checkpoint whose length never depends on how far training has come, and errors that name an entry."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDING = -1
"""Fills a saved vector up to its size."""


def padded(name: str, numbers: Tensor, size: int) -> dict[str, Any]:
    """A vector of int64 as it is saved: filled up to `size` numbers, and how many of them count."""
    vector = torch.full((size,), PADDING, dtype=torch.int64, device="cpu")
    vector[: len(numbers)] = numbers
    return {name: vector, "count": len(numbers)}


def unpadded(name: str, state: Mapping[str, Any]) -> Tensor:
    """A copy of what was `padded`; `state` must have passed `checked`."""
    numbers: Tensor = state[name].cpu()[: state["count"]].clone()
    return numbers


def checked(name: str, state: object, size: int, most: int, key: str) -> np.ndarray:
    """The numbers of a vector that was `padded`.

    Args:
        most: how many of the `size` can count.
        key: of `state`, which errors name.
    Raises:
        ValueError: `state` is anything else.
    """
    if not isinstance(state, dict) or set(state) != {name, "count"}:
        raise refused(key, f'must hold "{name}" and "count"', list(state) if isinstance(state, dict) else state)
    count, numbers = state["count"], _plain_numbers(state[name], size)
    check_count(f'{key}["count"]', count, most)
    if numbers is None:
        raise refused(f'{key}["{name}"]', f"must be a plain vector of {size} torch.int64", state[name])
    if (numbers[count:] != PADDING).any():
        raise refused(f'{key}["{name}"]', f'must be {PADDING} from {count} ("count") on', "other numbers")
    return numbers[:count]


def _plain_numbers(vector: object, size: int) -> np.ndarray | None:
    """The numbers of a saved vector, None if it is anything but a plain one of `size` int64."""
    if type(vector) is not Tensor or vector.layout != torch.strided or vector.dtype != torch.int64:
        return None
    try:
        numbers = np.ascontiguousarray(vector.cpu().numpy())
    except (RuntimeError, TypeError, NotImplementedError):  # without storage, or with a lazy bit
        return None
    return numbers if numbers.shape == (size,) else None


def check_count(key: str, count: object, most: int) -> None:
    """Raise ValueError, which names `key`, unless `count` is a whole number of [0, most]."""
    if type(count) is not int or not 0 <= count <= most:
        raise refused(key, f"must be a whole number in [0, {most}]", count)


def refused(key: str, rule: str, got: object) -> ValueError:
    """The error that says which entry of a state dict is wrong."""
    return ValueError(f"{key} {rule}, got {_shown(got)}.")


def _shown(value: object) -> str:
    """`value` in a few words, whatever it is."""
    try:
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)}, {value.layout}, on {value.device}"
        words = repr(value)
    except Exception:  # a whole number of more than 4,300 digits, a nested tensor
        return f"a {type(value).__name__} that cannot be shown"
    return words if len(words) <= 200 else f"{words[:200]}..."
