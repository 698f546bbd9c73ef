"""Time creation, evolution and training steps of sparse layers beside their dense form, in one process.

    python examples/benchmark.py

The variants of one row are run in turn, A B A B ..., and the table gives medians and their ratio: absolute times
differ between machines and from minute to minute, ratios much less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sparsify import SET, SparseLinear, epsilon, sparsify


def medians(*variants: Callable[[], object], repeats: int) -> list[float]:
    """Median milliseconds of each variant, run in turn."""
    times: list[list[float]] = [[] for _ in variants]
    for run in variants:
        run()
    for _ in range(repeats):
        for own, run in zip(times, variants, strict=True):
            start = time.perf_counter()
            run()
            own.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(own) for own in times]


def create_and_evolve(repeats: int) -> Table:
    """Creation and evolution at Synapses' own benchmark: 1024 x 1024, 22,528 connections."""
    linear = nn.Linear(1024, 1024)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9)
    layer, optimizer = sparsify(linear, optimizer, epsilon(11), evolution=SET(None))
    layer(torch.randn(32, 1024)).sum().backward()
    optimizer.step()
    create, evolve = medians(lambda: SparseLinear(1024, 1024, layer.density), optimizer.evolve, repeats=repeats)
    table = Table("1024 x 1024, 22,528 connections", "ms")
    table.add_row("create", f"{create:.2f}")
    table.add_row("evolve (SGD with momentum)", f"{evolve:.2f}")
    return table


def training_steps(sizes: list[int], batches: list[int], densities: list[float], repeats: int) -> Table:
    """Forward and backward of one n x n layer, sparse against nn.Linear."""
    table = Table("n", "batch", "density", "nn.Linear ms", "SparseLinear ms", "speed-up")
    for n in sizes:
        for batch in batches:
            x = torch.randn(batch, n, requires_grad=True)
            for density in densities:
                dense, sparse = nn.Linear(n, n), SparseLinear(n, n, density)

                def step(layer: nn.Module, x: torch.Tensor = x) -> None:
                    layer(x).sum().backward()

                one, other = medians(lambda: step(dense), lambda: step(sparse), repeats=repeats)  # noqa: B023
                table.add_row(str(n), str(batch), f"{density:g}", f"{one:.2f}", f"{other:.2f}", f"{one / other:.2f}")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[128])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    options = parser.parse_args()
    console = Console()
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(create_and_evolve(options.repeats * 10))
    console.print(training_steps(options.sizes, options.batches, options.densities, options.repeats))


if __name__ == "__main__":
    main()
