"""Which layers a module-name glob names, whatever wraps the model, and what to say where it names none."""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from sparsify._src.checks import shown

COMPILED, WRAPPED = "_orig_mod", "module"
"""Parts of names that wrappers make: torch.compile; DataParallel, DistributedDataParallel and AveragedModel."""

MOST = 10
"""How many names an error lists."""


def names(glob: str, name: str, wrappers: Collection[str] = (COMPILED, WRAPPED)) -> bool:
    """Whether `glob` names the module `name` or one that contains it, with or without the parts that wrappers make.

    Args:
        wrappers: such parts.
    """
    globs, spellings = {glob, _without(glob, wrappers)}, {name, _without(name, wrappers)}
    return any(fnmatchcase(within, each) for each in globs for spelling in spellings for within in _levels(spelling))


def named(glob: str, layers: Collection[str]) -> set[str]:
    """The layers that `glob` names.

    A part `module` is a wrapper's only where the glob names nothing otherwise: a model may have such a module itself.
    """
    exact = {name for name in layers if names(glob, name, (COMPILED,))}
    return exact or {name for name in layers if names(glob, name)}


def listed(argument: str, globs: object) -> tuple[str, ...]:
    """The globs that an argument gives, of which one may stand alone.

    Raises:
        TypeError: there are none, or something else is among them.
    """
    if isinstance(globs, str):
        return (globs,)
    if isinstance(globs, nn.Module) or not isinstance(globs, Iterable):
        raise TypeError(f"{argument} must hold module-name globs, got {shown(globs)}. {_way(argument)}")
    given = tuple(globs)
    for glob in given:
        if not isinstance(glob, str):
            raise TypeError(f"{argument} must hold module-name globs, got {shown(glob)}. {_way(argument)}")
    return given


def check_globs(argument: str, globs: Sequence[str], layers: Iterable[str]) -> None:
    """Raise unless each of these globs is one, and names a layer."""
    layers = list(layers)
    for glob in listed(argument, globs):
        if not named(glob, layers):
            raise ValueError(
                f"{argument} must name layers, got {glob!r}, which names none of {_some(layers)}."
                f"{_nearest(glob, layers)}"
            )


def _way(argument: str) -> str:
    example = '{"encoder.*": 0.1}' if argument == "density" else '["head", "encoder.*"]'
    return f"Names are those of model.named_modules(): {argument}={example}."


def _some(layers: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    if not layers:
        return "this model, which has none that could be sparse"
    more = f", ... and {len(layers) - MOST} more" if len(layers) > MOST else ""
    return f"[{', '.join(map(repr, layers[:MOST]))}{more}]"


def _nearest(glob: str, layers: Sequence[str]) -> str:
    """A question after the name that is nearest to a glob, "" where none is near."""
    known = {
        level: None for name in layers for level in [*_levels(name), *_levels(_without(name, (COMPILED, WRAPPED)))]
    }
    last = {level.rpartition(".")[2]: level for level in reversed(known) if level in layers}
    near = get_close_matches(glob, known, 1, 0.6) or [last[x] for x in get_close_matches(glob, last, 1, 0.6)]
    return f" Did you mean {near[0]!r}?" if near and near[0] else ""


def _levels(name: str) -> list[str]:
    """The names of all modules that contain a module, the outermost first, and its own."""
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _without(name: str, wrappers: Collection[str]) -> str:
    """A name, or a glob, without the parts that wrappers make."""
    return ".".join(part for part in name.split(".") if part not in wrappers)
