"""Checks of arguments that several rooms share: each returns what was checked, or raises with the way out."""

import reprlib
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def check_density(density: object, where: str = "", argument: str = "density") -> float:
    """Return `density` as a float, or raise if it is not a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, Real):
        raise TypeError(f"{argument} must be a number in (0, 1], got {density!r}{where}.")
    density = float(density)
    if not 0 < density <= 1:
        hint = f" For {density:g}% sparsity pass {argument}={(100 - density) / 100:g}." if 1 < density < 100 else ""
        raise ValueError(f"{argument} must be in (0, 1], got {density:g}{where}.{hint}")
    return density


def is_plain_vector(value: object, length: int | None, device: torch.device) -> TypeGuard[Tensor]:
    """Whether `value` is a tensor (length,) on `device`, in memory that compiled code may read; None for any length."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized)
        and value.device == device
        and value.dim() == 1
        and length in (None, len(value))
        and (not len(value) or value.data_ptr() != 0)  # storage that was given back, or never there
    )


def described(value: object) -> str:
    """What someone's rule gave, for an error: `torch.int64 (3,) on cpu`."""
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    kinds = [] if type(value) in (Tensor, nn.Parameter) else [type(value).__name__]
    kinds += [] if value.layout is torch.strided else [str(value.layout)]
    shape = "(nested)" if value.is_nested else tuple(value.shape)
    return " ".join([*kinds, f"{value.dtype} {shape} on {value.device}"])


def check_callable(argument: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{argument} must be callable, got {value!r}. Pass the function itself, not its name.")


def check_count(argument: str, count: object, least: int, unit: str = "") -> None:
    """Raise unless `count` is a whole number, at least `least`."""
    if isinstance(count, bool) or not isinstance(count, Integral):
        is_share = unit and isinstance(count, float) and 0 < count <= 1
        way_out = " For a share of the training say how long that is: sparsify(..., steps=...)." if is_share else ""
        raise TypeError(f"{argument} must be a whole number{unit}, got {count!r}.{way_out}")
    if count < least:
        raise ValueError(f"{argument} must be at least {least}, got {count}.{unit and f' It is a number{unit}.'}")


def check_share(argument: str, share: object, where: str = "") -> float:
    """Return `share` as a float, or raise if it is not a number in [0, 1]."""
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"{argument} must be a number in [0, 1], got {share!r}{where}.")
    number: Any = share
    if not 0 <= number <= 1:
        hint = f" For {float(number):g} % pass {float(number) / 100:g}." if 1 < number <= 100 else ""
        raise ValueError(f"{argument} must be in [0, 1], got {share}{where}.{hint}")
    return float(number)
