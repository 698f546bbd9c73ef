"""How rules, schedules and algorithms are written and shown: the call that makes them, and their signatures."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial, wraps
from inspect import Parameter, Signature
from typing import Any, TypeVar, cast

Face = TypeVar("Face", bound=Callable[..., Any])


def as_typed(value: Any) -> str:
    """The call that makes a rule, a schedule or an algorithm: the `__repr__` of a dataclass.

    Options at their defaults are left out; the first one, and those without a default, are given by position where they
    can be.

    Example:
        >>> from sparsify import RigL, cosine
        >>> RigL(drop_fraction=cosine(0.5, 45_000), until=45_000, interval="auto")
        RigL(drop_fraction=cosine(0.5, 45000), until=45000)
    """
    shown = []
    for number, option in enumerate(fields(value)):
        given = getattr(value, option.name)
        if option.init and (option.default is MISSING or given != option.default):
            by_position = not option.kw_only and (option.default is MISSING or number == 0)
            shown.append(written(given) if by_position else f"{option.name}={written(given)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def written(value: object) -> str:
    """How a rule, a schedule or a number is written: functions by their name, all else by repr."""
    if isinstance(value, partial):
        options = [f"{name}={written(option)}" for name, option in value.keywords.items()]
        return f"partial({', '.join([*map(written, (value.func, *value.args)), *options])})"
    return getattr(value, "__name__", None) or repr(value)


class _Written:
    """A default that a signature shows as it is written: a function by its name, without its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return written(self.value)


def plain_signature(of: Callable[..., Any]) -> Signature:
    """The signature as documentation shows it: names and defaults; what they mean is in the docstring."""
    return Signature(
        [
            each.replace(
                annotation=Parameter.empty,
                default=each.default if each.default is Parameter.empty else _Written(each.default),
            )
            for each in inspect.signature(of).parameters.values()
        ]
    )


def explaining(*reasons: Callable[[Any], str]) -> Callable[[Face], Face]:
    """Have a function say why what is no argument of it is none.

    Args:
        reasons: functions called like such an argument: its value -> what to say.
    """
    known = {reason.__name__: reason for reason in reasons}

    def explain(face: Face) -> Face:
        @wraps(face)
        def explained(*args: Any, **kwargs: Any) -> Any:
            for name in known.keys() & kwargs.keys():
                raise TypeError(known[name](kwargs[name]))
            return face(*args, **kwargs)

        return cast(Face, explained)

    return explain


def shown_plainly(face: Face) -> Face:
    """Have `help()` show the plain signature of a public function."""
    face.__signature__ = plain_signature(face)  # type: ignore[attr-defined]
    return face


class Shown(type):
    """A class of which `help()` shows the plain signature, and what is ours and public: no proxy's forty methods."""

    @property
    def __signature__(cls) -> Signature:
        own = list(plain_signature(vars(cls)["__init__"]).parameters.values())
        return Signature(own[1:])  # without self

    def __dir__(cls) -> list[str]:
        ours = [vars(base) for base in cls.__mro__ if base.__module__.partition(".")[0] == "sparsify"]
        names = {name: inspect.getattr_static(cls, name) for own in ours for name in own}
        return [
            name
            for name, value in names.items()
            if not (name.startswith("_") or name in getattr(cls, "__dataclass_fields__", ()))
            and (isinstance(value, property) or inspect.isfunction(value))
        ]
