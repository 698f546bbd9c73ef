"""Training steps over numbers of threads, and beside processes that use the processor too: a part of benchmark.py."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from sparsify import sparsify
from sparsify._src.conversion import processor

NETWORKS = {
    "64-300-100-10, batch 100, density .1": ((64, 300, 100, 10), 100, 0.1),
    "784-1000-1000-1000-10, batch 128, density .1": ((784, 1000, 1000, 1000, 10), 128, 0.1),
    "784-1000-1000-1000-10, batch 128, density .01": ((784, 1000, 1000, 1000, 10), 128, 0.01),
}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes compute meanwhile, each on one core."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        time.sleep(0.2 * count)  # until they have begun
        yield


def training(sizes: tuple[int, ...], batch: int, density: float) -> Callable[[], None]:
    """A step of a multilayer perceptron; dense where density is 1."""
    torch.manual_seed(0)
    parts = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    model: nn.Module = nn.Sequential(*parts[:-1])
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if density < 1:
        model, optimizer = sparsify(model, optimizer, density, steps=10**9)
    x, y = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def mean(run: Callable[[], None], seconds: float) -> float:
    """Mean milliseconds of a step: waiting comes in bursts, and counts in an epoch, but not in a median."""
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return statistics.mean(times) * 1e3


def over_threads(seconds: float) -> Table:
    """All of it; threads 1, 2, 4... up to as many as there are cores."""
    cores = processor.cores()
    counts = [2**k for k in range(cores.bit_length()) if 2**k <= cores]
    counts += [cores] * (cores not in counts)
    title = f"a training step over threads, {cores} cores: mean ms, and times its time beside nothing"
    table = Table("network", "threads", "busy processes", "dense ms", "", "sparse ms", "", "speed-up", title=title)
    before, alone = torch.get_num_threads(), {}
    try:
        for beside in 0, 1, 2:
            with busy(beside):
                for name, (sizes, batch, density) in NETWORKS.items():
                    dense, sparse = training(sizes, batch, 1), training(sizes, batch, density)
                    for threads in counts:
                        torch.set_num_threads(threads)
                        found = mean(dense, seconds), mean(sparse, seconds)
                        first = alone.setdefault((name, threads), found)
                        times = [f"{ms / own:.1f} x" for ms, own in zip(found, first, strict=True)]
                        cells = f"{found[0]:.2f}", times[0], f"{found[1]:.2f}", times[1], f"{found[0] / found[1]:.2f}"
                        table.add_row(name, str(threads), str(beside), *cells)
    finally:
        torch.set_num_threads(before)
    return table
