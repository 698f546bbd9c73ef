"""Where training starts: which layers are sparse then, and at which connections, where not a density says it."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sparsify._src.conversion.distributions import Sizes
from sparsify._src.conversion.eligibility import Kind, Reason
from sparsify._src.conversion.linear_maps import LinearMap
from sparsify._src.layers import checkpoint
from sparsify._src.layers.map import SparseMap
from sparsify._src.vectors import positions

Start = Literal["random", "magnitude", "nonzero"] | Mapping[str, Any] | nn.Module
"""Where a sparse model's topologies and values come from."""

BY_DENSITY = ("random", "magnitude")

SKIPPED = Reason("skip names it", Kind.SKIPPED)
"""The reason of a layer that the user leaves dense."""

GIVEN_WITH_STATE_DICT = "density and skip must not be given where start is a state dict, which says what is sparse."

PRUNES_TO = "density must be given where evolution prunes, got none: it is where pruning ends."

WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
"""What holds a model as its `module`."""


def is_by_density(start: object) -> bool:
    """Whether a density says how many connections there are, and not `start`."""
    return isinstance(start, str) and start in BY_DENSITY


def check(start: object) -> None:
    """Raise unless `start` is one."""
    if isinstance(start, (Mapping, nn.Module)) or (isinstance(start, str) and start in (*BY_DENSITY, "nonzero")):
        return
    got = repr(start) if isinstance(start, str) else type(start).__name__
    way_out = " Load the file first: start=torch.load(...)." if isinstance(start, (str, PathLike)) else ""
    raise ValueError(
        'start must be "random", "magnitude", "nonzero", the state dict of a sparse model or a sparse model, got '
        f"{got}.{way_out}"
    )


def check_density(start: Start, density: object, prunes: bool) -> None:
    """Raise unless `density` is given where it is needed, and only there; `start` gives the connections.

    Args:
        prunes: whether an algorithm goes on from these connections down to a density.
    """
    if isinstance(start, Mapping):
        if density is not None:
            raise ValueError(GIVEN_WITH_STATE_DICT)
    elif density is not None and not prunes:
        raise ValueError(
            "density must not be given where start gives the connections, got both. An algorithm that prunes, such as "
            'GMP(...), goes on from there down to a density; start="magnitude" keeps the largest weights of a density.'
        )
    elif density is None and prunes:
        raise ValueError(PRUNES_TO)


def given_topologies(
    start: Start,
    maps: Mapping[str, LinearMap],
    reasons: Mapping[str, Reason],
    aliases: Mapping[str, str],
    trains: bool,
) -> dict[str, Tensor]:
    """The connections of each layer that becomes sparse, where `start` says them: sorted flat indices.

    Args:
        start: neither "random" nor "magnitude".
        maps: the linear maps of the model.
        reasons: why some of them cannot be sparse.
        aliases: other names of linear maps -> theirs among the maps.
        trains: whether there is an optimizer; without one, frozen layers may be sparse too.
    Raises:
        ValueError: `start` holds no sparse layer, or one that the model cannot have.
    """
    if isinstance(start, str):
        found = {name: _nonzero(linear_map) for name, linear_map in maps.items() if name not in reasons}
        return {name: flat for name, flat in found.items() if flat is not None}
    theirs = dict(_of_state_dict(start, maps, aliases) if isinstance(start, Mapping) else _of_model(start))
    if not theirs:
        raise ValueError(_without_sparse_layers(start))
    given: dict[str, Tensor] = {}
    for other, (shape, flat) in theirs.items():
        name = aliases.get(other, other)
        reason = reasons.get(name)
        if reason is not None and reason.kind is Kind.SKIPPED:
            continue
        to_serve = not trains and reason is not None and reason.kind is Kind.FROZEN
        if name not in maps or flat is None or (reason is not None and not to_serve):
            why = "the model has no such layer" if reason is None else reason.words
            raise ValueError(f"model must be able to have the sparse layers of start, got none at {other!r}: {why}.")
        if (own := maps[name].weight_shape) != shape:
            raise ValueError(f"model must have the shapes of start, got {own} in layer {name!r}, there {shape}.")
        if not given.setdefault(name, flat).equal(flat):
            raise ValueError(
                f"start must have one topology where the model has one layer, got two: {name!r} is at {other!r} too."
            )
    return given


def _without_sparse_layers(start: Mapping[str, Any] | nn.Module) -> str:
    kind = "state dict of a sparse model" if isinstance(start, Mapping) else "sparse model"
    for name, part in start.items() if isinstance(start, Mapping) else ():
        if isinstance(part, Mapping) and checkpoint.sparse_layers({key: 0 for key in part if isinstance(key, str)}):
            return f"start must be the {kind}, got one at {name!r} of a checkpoint. Pass it alone: start=...[{name!r}]."
    return (
        f"start must be the {kind}, got one without sparse layers. Load dense weights into the model first; then "
        'start="nonzero" takes what is not zero, and start="magnitude" the largest of a density.'
    )


def _of_state_dict(
    state_dict: Mapping[str, Any], maps: Mapping[str, LinearMap], aliases: Mapping[str, str]
) -> Iterator[tuple[str, tuple[Sizes, Tensor | None]]]:
    for prefix in checkpoint.sparse_layers(state_dict):
        name = prefix.removesuffix(".")
        if (linear_map := maps.get(aliases.get(name, name))) is None:
            yield name, ((0, 0), None)
        else:
            yield name, (linear_map.weight_shape, checkpoint.topology_of(state_dict, prefix, linear_map.shape))


def _of_model(model: nn.Module) -> Iterator[tuple[str, tuple[Sizes, Tensor | None]]]:
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    while isinstance(model, WRAPPERS):
        model = getattr(model.module, "_orig_mod", model.module)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseMap):
            yield name, (module.shape_by_taps, module.flat())


def _nonzero(linear_map: LinearMap) -> Tensor | None:
    """Where a dense weight is not zero; None where it is nowhere zero."""
    weight = linear_map.weight_now.detach()
    if weight.is_meta:
        raise ValueError('start must not be "nonzero" for a model on the meta device: it has no weights.')
    active = (weight != 0).flatten()
    return None if bool(active.all()) else positions(active)


def existing(model: nn.Module, held: Sequence[Tensor] | None) -> dict[str, SparseMap]:
    """The layers of `model` that are sparse already, and whose values are among the held parameters, if there are any.

    Args:
        held: None for all layers.
    """
    ours = {id(parameter) for parameter in held or ()}
    layers = {name: x for name, x in model.named_modules() if isinstance(x, SparseMap)}
    return {name: x for name, x in layers.items() if held is None or id(x._parameters.get("values")) in ours}
