"""How long a layer takes, sparse and dense, for `plan`: from what was measured on this machine, else on another.

What is known is `Figures`. At first they are `built_in`, of the processor most like this one. `measure` measures this
machine, a grid of square layers and the very layers of a model, and keeps what it found on disk (`figures_file`) for
the same processor, number of threads, releases and compiled library; whoever asks later finds it there. Nothing else
measures: what was known once in a process stays, so that two calls give the same.
"""

import hashlib
from collections.abc import Iterable
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsify._src import progress_bar
from sparsify._src.conversion import built_in, figures_file, measuring, processor
from sparsify._src.conversion.figures import SIZES, Figures, filled, joined
from sparsify._src.conversion.places import Place
from sparsify._src.distributed import Ranks
from sparsify._src.kernels import native
from sparsify._src.kernels.dispatch import best
from sparsify._src.native import library
from sparsify._src.topology import Shape
from sparsify._src.torch_private import dispatch_modes

BATCH = 128
"""Rows of input where nothing else is said."""

MEASURED = SIZES[:-1]
"""Sizes of the grid that are measured. The largest would take seconds; it is as much slower as it was elsewhere."""


class Use(NamedTuple):
    """For what speeds are told."""

    batch: int = BATCH
    training: bool = True

    @property
    def is_usual(self) -> bool:
        """Whether it is what `skip="losing"` judges by."""
        return self == USUAL


USUAL = Use()


class _Known(NamedTuple):
    kept: figures_file.Kept | None  # of this machine
    figures: Figures


_known: dict[str, _Known] = {}
"""By the circumstances, as text."""


def is_known(device: torch.device) -> bool:
    """Whether this tells of layers there: on a CPU, or on the meta device, which will be on one."""
    return device.type in ("cpu", "meta")


def milliseconds(shape: Shape, nnz: int, use: Use = USUAL) -> float:
    """The time of a sparse layer."""
    return figures().sparse(shape, nnz, *use)


def dense_milliseconds(shape: Shape, use: Use = USUAL) -> float:
    """The time of an nn.Linear."""
    return figures().dense(shape, *use)


def speed_up(shape: Shape, nnz: int, use: Use = USUAL) -> float:
    """How many times faster than nn.Linear a layer of `shape` with `nnz` connections is expected to be on this CPU."""
    return dense_milliseconds(shape, use) / milliseconds(shape, nnz, use)


def dense_milliseconds_at(place: Place) -> float:
    """The time of a dense layer, linear or a convolution."""
    return figures().dense_at(place)


def milliseconds_at(place: Place, nnz: int) -> float:
    """The time of a sparse layer."""
    return figures().sparse_at(place, nnz)


def figures() -> Figures:
    """What is known of this machine, else of the one most like it."""
    return _of_this_machine(_key()).figures


def measure(layers: Iterable[tuple[Place, int]] = ()) -> str:
    """Measure this machine, and these layers (with so many connections), as far as that was not done before.

    What is found is kept layer by layer: what interrupts this loses no more than the one that it is at.

    Returns:
        why it could not be kept, empty where it was.
    Raises:
        ValueError: in distributed training, or where PyTorch does not compute.
        Unsteady: something else uses the processor; what was found before stays.
    """
    _check()
    key = _key()
    kept = _of_this_machine(key).kept or figures_file.read(key)
    layers = dict.fromkeys((place.fewer, nnz) for place, nnz in layers if nnz and measuring.is_small(place.fewer))
    trouble = ""
    if kept is None:
        kept = figures_file.Kept(str(date.today()), filled(measuring.grid(MEASURED), _built_in().grid), {})
        trouble = _keep(key, kept)
    else:
        _know(key, kept)
    missing = [(place, nnz) for place, nnz in layers if not _is_there(kept, place, nnz)]
    with progress_bar.shown("measuring layers", len(missing), " layers") as advance:
        for place, nnz in missing:
            pair = joined(kept.layers.get(place), measuring.layer(place, nnz))
            kept = kept._replace(layers={**kept.layers, place: pair})
            trouble = _keep(key, kept)
            advance(1)
    return trouble


def _keep(key: dict[str, Any], kept: figures_file.Kept) -> str:
    """Know it from now on, and write it down; why that could not be done, empty where it was."""
    _know(key, kept)
    return figures_file.write(key, kept)


def _know(key: dict[str, Any], kept: figures_file.Kept) -> None:
    _known[str(key)] = _Known(kept, _measured(kept, key))


def form() -> str:
    """Which kernels compute: their name, of our own the instruction set."""
    name = best()
    return ("baseline", "AVX2", "AVX-512")[native.LEVEL] if name == "native" else name


def _of_this_machine(key: dict[str, Any]) -> _Known:
    if (name := str(key)) not in _known:
        kept = figures_file.read(key)
        _known[name] = _Known(kept, _measured(kept, key) if kept else _built_in())
    return _known[name]


def _measured(kept: figures_file.Kept, key: dict[str, Any]) -> Figures:
    count = key["threads"]
    return Figures(
        kept.grid,
        f"measured on this machine with {count} thread{'s' * (count > 1)}, {kept.date}",
        kept.layers,
        _built_in().costs,
    )


def _built_in() -> Figures:
    return built_in.nearest(processor.described(), form())


def _is_there(kept: figures_file.Kept, place: Place, nnz: int) -> bool:
    pair = kept.layers.get(place)
    return pair is not None and nnz in pair.sparse


def _key() -> dict[str, Any]:
    """The circumstances on which times depend."""
    return {
        "processor": processor.described(),
        "cores": processor.cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": form(),
        "library": _digest(library.LIBRARY and library.LIBRARY._name),
    }


@cache
def _digest(file: str | None) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def _check() -> None:
    """Raise ValueError where measuring would say nothing about this machine."""
    if Ranks().group is not None:
        raise ValueError(
            "measure must be False in distributed training, got True: ranks would wait for one another's measuring. "
            "Measure before, in one process: what is found is kept on disk."
        )
    if dispatch_modes() or torch.compiler.is_compiling():
        raise ValueError(
            "measure must be False under torch.compile, FakeTensorMode and the like, got True: nothing is computed "
            "there as it is in training. Call plan outside."
        )
