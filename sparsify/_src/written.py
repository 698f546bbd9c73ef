"""How rules, schedules and algorithms are written: the call that makes them."""

from functools import partial
from inspect import Parameter, signature


def as_typed(value: object) -> str:
    """The call that makes a rule, a schedule or an algorithm: the `__repr__` of a dataclass.

    Options at their defaults are left out; the first one, and those without a default, are given by position.

    Example:
        >>> from sparsify import RigL, cosine
        >>> RigL(drop_fraction=cosine(0.5, 45_000), until=45_000, interval=100)
        RigL(drop_fraction=cosine(0.5, 45000), until=45000)
    """
    kind = next(base for base in type(value).__mro__ if "__dataclass_fields__" in vars(base))  # whose options it has
    shown = []
    for number, (name, option) in enumerate(signature(kind).parameters.items()):
        given = getattr(value, name)
        if option.default is Parameter.empty or given != option.default:
            by_position = option.default is Parameter.empty or number == 0
            shown.append(written(given) if by_position else f"{name}={written(given)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def written(value: object) -> str:
    """How a rule, a schedule or a number is written: functions by their name, all else by repr."""
    if isinstance(value, partial):
        options = [f"{name}={written(option)}" for name, option in value.keywords.items()]
        return f"partial({', '.join([*map(written, (value.func, *value.args)), *options])})"
    return getattr(value, "__name__", None) or repr(value)
