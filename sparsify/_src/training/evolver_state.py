"""What a checkpoint holds of an evolver, beside the wrapped optimizer's own state."""

from collections.abc import Mapping
from typing import Any, Protocol

from sparsify._src import topology
from sparsify._src.topology import Digest
from sparsify._src.training import optimizer_loading
from sparsify._src.training.choices import Choices
from sparsify._src.training.evolved_layers import EvolvedLayer
from sparsify._src.training.progress import Progress
from sparsify._src.training.stepping_optimizers import SteppingOptimizers


class Evolves(Protocol):
    """An `Evolver`, as far as it is saved."""

    choices: Choices
    progress: Progress
    evolved: dict[str, EvolvedLayer]


def state_dict(evolver: Evolves) -> dict[str, Any]:
    """What evolution needs to resume bit for bit, as plain numbers, lists, dicts and tensors."""
    return {
        **evolver.progress.state_dict(),
        "schedules": {name: part.state_dict() for name, part in _stateful(evolver.choices)},
        "topology": {name: each.topology for name, each in evolver.evolved.items()},
    }


def check_state_dict(evolver: Evolves, state: object) -> None:
    """Raise ValueError unless `state` can be loaded; nothing is changed."""
    if not isinstance(state, Mapping):
        raise ValueError(f'state_dict["sparsify"] must be a dict, got {type(state).__name__}.')
    own = {"schedules": dict(_stateful(evolver.choices)), "topology": evolver.evolved}
    for key, expected in own.items():
        found = state.get(key)
        if not isinstance(found, Mapping) or set(found) != set(expected):
            theirs = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(f'state_dict["sparsify"]["{key}"] must be of {sorted(expected)}, got {theirs}.')
    shapes = {name: each.layer.shape for name, each in evolver.evolved.items()}
    for name, shape in shapes.items():
        topology.check_digest(f'state_dict["sparsify"]["topology"]["{name}"]', state["topology"][name], shape)
    evolver.progress.check_state_dict(state, shapes)


def load_optimizer(evolver: Evolves, state: Mapping[str, Any], wrapped: Any, optimizers: SteppingOptimizers) -> None:
    """Load the wrapped optimizer's state, and that of the user's rules and schedules; `load_progress` comes next.

    Args:
        state: checked.
        wrapped: the wrapped optimizer's state dict.
    Raises:
        ValueError: that does not fit, which shows only now where an optimizer has a format of its own. Nothing is
            changed.
    """
    parts = _stateful(evolver.choices)
    before = [(part, part.state_dict()) for _, part in parts]
    topologies: dict[str, Digest] = {name: tuple(of) for name, of in state["topology"].items()}
    layers = {name: (each.values, each.topology, topologies[name]) for name, each in evolver.evolved.items()}
    try:
        for name, part in parts:
            part.load_state_dict(state["schedules"][name])
        optimizer_loading.load(optimizers.optimizer, wrapped, layers, optimizers.kept)
    except Exception:
        for part, old in before:
            part.load_state_dict(old)
        raise


def load_progress(evolver: Evolves, state: Mapping[str, Any]) -> None:
    """Load where evolution stands, and which topologies the buffers belong to: nothing in this can be wrong."""
    evolver.progress.load_state_dict(state)
    for name, each in evolver.evolved.items():
        each.topology, each.resets = tuple(state["topology"][name]), each.layer.resets


def _stateful(choices: Choices) -> list[tuple[str, Any]]:
    """The rules and schedules that have state of their own, as a user's may; ours have none."""
    parts = {**vars(choices.evolution), "grown_values": choices.grown_values, "grown_state": choices.grown_state}
    return [(name, part) for name, part in parts.items() if hasattr(part, "load_state_dict")]
