"""The ready-made rules by kind, and the check that an argument is a rule of its kind: they are what errors name."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import NamedTuple

from sparsify._src.checks import shown
from sparsify._src.written import written


class Kind(NamedTuple):
    """A kind of rule.

    what: its name in errors, with the article.
    takes: the arguments that a rule of this kind is called with.
    ready: name -> how it is written as an argument: itself where it is a function, a call where it takes options.
    home: the module that has them.
    """

    what: str
    takes: tuple[str, ...]
    ready: Mapping[str, str]
    home: str = "sparsify.evolution"


def _functions(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


SCHEDULE = Kind(
    "a schedule",
    ("step",),
    {
        "cosine": "cosine(0.3, 45_000)",
        "constant": "constant(0.3)",
        "ramp": "ramp(0.3, 45_000)",
        "cubic": "cubic(1.0, 30_000)",
    },
)
DROP = Kind("a drop rule", ("layer",), {**_functions("magnitude", "saliency"), "sparing_units": "sparing_units()"})
SCOPE = Kind(
    "a scope",
    ("layers", "scores", "excess", "fraction"),
    _functions("per_sign", "per_layer", "across_layers"),
)
GROW = Kind(
    "a growth rule",
    ("layer", "count"),
    {
        **_functions("uniformly", "by_gradient"),
        "by_gradient_among": "by_gradient_among(8)",
        "mixed": "mixed(by_gradient, uniformly, share=0.5)",
        "feeding_units": "feeding_units()",
    },
)
GROWN_VALUES = Kind(
    "a function of grown values",
    ("count", "shape", "nnz", "generator"),
    _functions("zeros", "fan_in_uniform"),
    "sparsify",
)
INTERVAL = Kind("a function of the step", ("step",), {"coin": "coin(0.05)"})
DISTRIBUTION = Kind("a distribution", ("shapes", "density"), _functions("erdos_renyi", "uniform"), "sparsify")
DENSITY = Kind("a function of the shape", ("shape",), {"epsilon": "epsilon(20)"}, "sparsify")

KINDS = SCHEDULE, DROP, SCOPE, GROW, GROWN_VALUES, INTERVAL, DISTRIBUTION, DENSITY

OTHER_NAMES = {
    **dict.fromkeys(("erk", "er", "erdos-renyi-kernel", "erdős-rényi"), "erdos_renyi"),
    **dict.fromkeys(("random", "set"), "uniformly"),
    **dict.fromkeys(("gradient", "rigl", "grad"), "by_gradient"),
    **dict.fromkeys(("global", "model"), "across_layers"),
    **dict.fromkeys(("layer", "local"), "per_layer"),
    **dict.fromkeys(("sign",), "per_sign"),
    **dict.fromkeys(("snip", "taylor"), "saliency"),
    **dict.fromkeys(("weight", "l1"), "magnitude"),
    **dict.fromkeys(("linear", "line"), "ramp"),
    **dict.fromkeys(("kaiming", "he", "fan_in"), "fan_in_uniform"),
}
"""What people call them elsewhere."""


def may_be_rule(value: object) -> bool:
    """Whether `value` is meant as a rule, where a number would do as well: a function, a class or a name."""
    if not isinstance(value, str):
        return callable(value)
    try:
        float(value)
    except ValueError:
        return True
    return False


def check_rule(argument: str, rule: object, kind: Kind, otherwise: str = "") -> None:
    """Raise TypeError unless `rule` is called as a rule of this kind is.

    Args:
        otherwise: what else the argument may be, as "a number in [0, 1]"; that is checked elsewhere.
    """
    is_what = f"{argument} must be {f'{otherwise} or ' if otherwise else ''}{kind.what} such as {_listed(kind)}"
    if isinstance(rule, type):
        name = rule.__name__
        is_one = any("__call__" in vars(base) for base in rule.__mro__)
        call = kind.ready.get(name, f"{name}(...)")
        way = (
            f"Call it: {argument}={call}." if is_one and _kind_of(rule) in (None, kind) else _way(argument, name, kind)
        )
        raise TypeError(f"{is_what}, got the class {name}. {way}")
    if not callable(rule):
        raise TypeError(f"{is_what}, got {shown(rule)}. {_way(argument, rule, kind)}")
    other = _kind_of(rule)
    if other not in (None, kind):
        raise TypeError(f"{is_what}, got {written(rule)}, {other.what}. {_way(argument, '', kind)}")
    if not _takes(rule, len(kind.takes)):
        raise TypeError(
            f"{argument} must take ({', '.join(kind.takes)}), got {written(rule)}{signature(rule)}. If that makes the "
            "rule, call it; options of a rule are bound by functools.partial or a dataclass with __call__."
        )


def _listed(kind: Kind) -> str:
    *others, last = kind.ready.values()
    return f"{', '.join(others)} or {last}" if others else last


def _way(argument: str, given: object, kind: Kind) -> str:
    """What to write instead: the ready-made rule that `given` names, else the first."""
    name = _nearest(given, kind) if isinstance(given, str) else next(iter(kind.ready))
    written_so = kind.ready[name]
    what = f"a function of ({', '.join(kind.takes)})" if written_so == name else "what its call gives"
    if given == name == written_so:
        what = "the function itself, not its name"
    return f"Pass {what}: from {kind.home} import {name}; {argument}={written_so}."


def _nearest(text: str, kind: Kind) -> str:
    """The ready-made rule of this kind whose name is nearest to `text`, the first where none is near."""
    wanted = text.lower().strip().partition("(")[0]
    other = OTHER_NAMES.get(wanted, wanted)
    names = list(kind.ready)
    near = get_close_matches(other.replace("-", "_").replace(" ", "_"), names, 1, 0.5)
    return near[0] if near else names[0]


def _kind_of(rule: object) -> Kind | None:
    """Of what kind a ready-made rule is; None where it is none of ours."""
    named = rule if hasattr(rule, "__name__") else type(rule)
    name, module = getattr(named, "__name__", ""), getattr(named, "__module__", None) or ""
    if not module.startswith("sparsify."):
        return None
    return next((kind for kind in KINDS if name in kind.ready), None)


def _takes(rule: object, count: int) -> bool:
    """Whether `rule` can be called with so many arguments by position; so if that cannot be told."""
    try:
        parameters = signature(rule).parameters.values()  # type: ignore[arg-type]  # it is callable
    except (TypeError, ValueError):  # of a builtin
        return True
    by_position = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    most = count if any(p.kind is Parameter.VAR_POSITIONAL for p in parameters) else len(by_position)
    required = [p for p in by_position if p.default is Parameter.empty]
    named = [p for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    return len(required) <= count <= most and not named
