"""The file in which a machine's figures are kept between processes."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsify._src.conversion.figures import Grid, Pair, is_grid
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window

VARIABLE = "SPARSIFY_CACHE"
"""The environment variable that names the folder."""


class Kept(NamedTuple):
    """What the file holds."""

    date: str
    grid: Grid
    layers: dict[Place, Pair]


def folder() -> Path | None:
    """Where the file is: $SPARSIFY_CACHE, else the user's folder for caches; None where there is no such folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    if given := os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"):
        return Path(given) / "sparsify"
    try:
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "sparsify"
    except RuntimeError:
        return None


def path(key: Mapping[str, Any]) -> Path | None:
    """The file of what was measured under these circumstances."""
    place = folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return place and place / f"speed-{digest}.json"


def read(key: Mapping[str, Any]) -> Kept | None:
    """What was kept; None where there is no file, or one that is broken or of other circumstances."""
    file = path(key)
    try:
        if file is None:
            return None
        held = json.loads(file.read_text())
        grid, layers = np.array(held["grid"], dtype=np.float64), dict(map(_layer, held["layers"]))
        return Kept(str(held["date"]), grid, layers) if held["key"] == key and is_grid(grid) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write(key: Mapping[str, Any], kept: Kept) -> str:
    """Keep it, in one go: who reads meanwhile finds the file as it was or as it is.

    Returns:
        why it could not be kept, empty where it was.
    """
    file = path(key)
    if file is None:
        return "there is no folder for it"
    layers = [
        [
            *place[:4],
            pair.dense,
            list(pair.sparse.items()),
            *([place.window.numbers, place.size] if place.window else []),
        ]
        for place, pair in kept.layers.items()
    ]
    held = {"key": key, "date": kept.date, "grid": kept.grid.tolist(), "layers": layers}
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(held))
        partial.replace(file)
    except OSError as error:
        return f"{file} could not be written ({error.strerror})"
    return ""


def _layer(held: list[Any]) -> tuple[Place, Pair]:
    training, outs, ins, batch, dense, sparse, *moved = held
    times = {int(nnz): float(ms) for nnz, ms in sparse}
    if not all(0 < ms < float("inf") for ms in (float(dense), *times.values())):
        raise ValueError("times must be above 0")
    place = Place(bool(training), int(outs), int(ins), int(batch))
    if moved:  # of a convolution
        numbers, sides = moved
        window, size = Window.of([*map(int, numbers)]), tuple(map(int, sides))
        place = place._replace(window=window, size=size)
        if len(size) != len(window.kernel_size) or place.pixels < 1:
            raise ValueError("sizes must be those of an input")
    return place, Pair(float(dense), times)
