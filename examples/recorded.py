"""What the records of evolutions cost: a part of benchmark.py."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from sparsify import SET, SparseOptimizer, sparsify
from sparsify._src.training.progress import Progress
from sparsify.telemetry import Lines

NETWORKS = {
    "LeNet-300-100, batch 100, density .1": ((784, 300, 100, 10), 100, 0.1),
    "784-1000-1000-1000-10, batch 128, density .05": ((784, 1000, 1000, 1000, 10), 128, 0.05),
    "4096 x 4096, batch 128, density .05": ((4096, 4096), 128, 0.05),
}
BETWEEN = 10
"""Steps between two evolutions that are timed: an evolution finds the caches as training leaves them."""

ASKED = 0.01
"""Of training at an interval of 100 steps records may cost less than this."""


def training(sizes: tuple[int, ...], batch: int, density: float) -> tuple[Callable[[], object], SparseOptimizer]:
    """A step of a multilayer perceptron, and its optimizer, which evolves when it is told to."""
    torch.manual_seed(0)
    parts = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    model: nn.Module = nn.Sequential(*parts[:-1])
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model, optimizer = sparsify(model, sgd, density, evolution=SET(interval=None))
    x, y = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run, optimizer


def milliseconds(run: Callable[[], object]) -> float:
    """Of one run."""
    before = time.perf_counter()
    run()
    return (time.perf_counter() - before) * 1e3


@contextmanager
def timed_records() -> Iterator[list[float]]:
    """The milliseconds of making each record in the block."""
    times: list[float] = []
    prepare = Progress.prepare_record

    def timing(*arguments: object) -> object:
        found: list[object] = []
        times.append(milliseconds(lambda: found.append(prepare(*arguments))))
        return found[0]

    with mock.patch.object(Progress, "prepare_record", timing):
        yield times


def costs(seconds: float) -> Table:
    """Time to make the records of an evolution, and to write them by `Lines`, beside the evolution and 100 steps."""
    title = f"records of an evolution, median ms; asked: under {ASKED:.0%} of training at interval 100"
    table = Table("network", "step", "evolution", "its records", "written", "of evolution", "of training", title=title)
    for name, network in NETWORKS.items():
        step, optimizer = training(*network)
        step()
        with TemporaryDirectory() as folder, timed_records() as records:
            write, steps, evolutions, written = Lines(Path(folder) / "lines.jsonl"), [], [], []
            while len(evolutions) < 5 or sum(steps) + sum(evolutions) < seconds * 1e3:
                steps += [milliseconds(step) for _ in range(BETWEEN)]
                evolutions.append(milliseconds(optimizer.evolve))
                written.append(milliseconds(lambda: write(optimizer.history[-1])))  # noqa: B023
        one, evolution, record, line = map(statistics.median, (steps, evolutions, records, written))
        shares = f"{record / evolution:.0%}", f"{(record + line) / (100 * one):.2%}"
        table.add_row(name, *(f"{ms:.2f}" for ms in (one, evolution, record, line)), *shares)
    return table
