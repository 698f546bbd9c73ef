"""Checks of arguments that several rooms share: each returns what was checked, or raises with the way out."""

import math
import reprlib
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

SHORT = reprlib.Repr()
SHORT.maxother = SHORT.maxstring = 80
"""How values are written in errors."""


def check_density(density: object, where: str = "", argument: str = "density", takes_epsilon: bool = False) -> float:
    """Return `density` as a float, or raise if it is not a number in (0, 1].

    Args:
        takes_epsilon: whether `epsilon(...)` would do as well.
    """
    if isinstance(density, bool) or not isinstance(density, Real):
        raise TypeError(
            f"{argument} must be a number in (0, 1], got {shown(density)}{where}.{_plainly(argument, density)}"
        )
    density = float(density)
    if not 0 < density <= 1:
        hint = _other_readings(density, argument, takes_epsilon)
        raise ValueError(f"{argument} must be in (0, 1], got {density:g}{where}.{hint}")
    return density


def _other_readings(density: float, argument: str, takes_epsilon: bool) -> str:
    """What someone may have meant by a number that is no density."""
    if density == 0:
        return " 0 would leave no connection."
    if not 1 < density < math.inf:
        return ""
    ways = [f"{density:g} % of the weights pass {argument}={density / 100:g}"] if density <= 100 else []
    ways += [f"the paper's epsilon pass {argument}=epsilon({density:g})"] if takes_epsilon else []
    ways += [f"{density:g} % sparsity pass {argument}={1 - density / 100:g}"] if density < 100 and density != 50 else []
    return f" For {', for '.join(ways)}." if ways else ""


def _plainly(argument: str, value: object) -> str:
    """The way out where `value` is no number, but says one: text, or a tensor or an array of one."""
    try:
        number = None if isinstance(value, (bool, complex)) else float(value)  # type: ignore[arg-type]  # may raise
    except Exception:
        return ""
    return "" if number is None else f" Pass the number itself: {argument}={number:g}."


def shown(value: object) -> str:
    """A value as it stands in an error: in one line, and shortened."""
    return " ".join(SHORT.repr(value).split())


def is_plain_vector(value: object, length: int | None, device: torch.device) -> TypeGuard[Tensor]:
    """Whether `value` is a tensor (length,) on `device`, in memory that compiled code may read; None for any length."""
    return not fault_of_vector(value, length, device)


def fault_of_vector(value: object, length: int | None, device: torch.device) -> str:
    """Why `value` is no such vector, and the way out; "" where it is one."""
    if value is None:
        return "It gave nothing: end it with return."
    if not isinstance(value, Tensor):
        return f"Its type is {type(value).__name__}: torch.as_tensor(...) makes a tensor."
    if type(value) not in (Tensor, nn.Parameter):
        return f"Its type is {type(value).__name__}: .as_subclass(torch.Tensor) makes a plain tensor."
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        return "It is not stored as a dense vector: .to_dense() makes one."
    if value.device != device:
        return f"It is on {value.device}, not on {device}: .to(layer.values.device) brings it there."
    if value.dim() != 1:
        return f"It has {value.dim()} dimensions, not one: .flatten() has one."
    if length not in (None, len(value)):
        return f"Its length is {len(value)}, not {length}."
    if len(value) and value.data_ptr() == 0:  # storage that was given back, or never there
        return "Its memory was given back."
    return ""


def described(value: object) -> str:
    """What someone's rule gave, for an error: `torch.int64 (3,) on cpu`."""
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    kinds = [] if type(value) in (Tensor, nn.Parameter) else [type(value).__name__]
    kinds += [] if value.layout is torch.strided else [str(value.layout)]
    shape = "(nested)" if value.is_nested else tuple(value.shape)
    return " ".join([*kinds, f"{value.dtype} {shape} on {value.device}"])


def check_count(argument: str, count: object, least: int, unit: str = "") -> None:
    """Raise unless `count` is a whole number, at least `least`."""
    if isinstance(count, bool) or not isinstance(count, Integral):
        is_share = unit and isinstance(count, float) and 0 < count <= 1
        way_out = " For a share of the training say how long that is: sparsify(..., steps=...)." if is_share else ""
        way_out = way_out if isinstance(count, Real) else _plainly(argument, count)
        raise TypeError(f"{argument} must be a whole number{unit}, got {shown(count)}.{way_out}")
    if count < least:
        raise ValueError(f"{argument} must be at least {least}, got {count}.{unit and f' It is a number{unit}.'}")


def check_share(argument: str, share: object, where: str = "") -> float:
    """Return `share` as a float, or raise if it is not a number in [0, 1]."""
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"{argument} must be a number in [0, 1], got {shown(share)}{where}.{_plainly(argument, share)}")
    number: Any = share
    if not 0 <= number <= 1:
        hint = f" For {float(number):g} % pass {float(number) / 100:g}." if 1 < number <= 100 else ""
        raise ValueError(f"{argument} must be in [0, 1], got {share}{where}.{hint}")
    return float(number)


def check_number(argument: str, number: object) -> None:
    """Raise TypeError unless `number` is a real number."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{argument} must be a number, got {shown(number)}.{_plainly(argument, number)}")
