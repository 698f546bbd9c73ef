"""Time sparse layers and training steps beside their dense form and the other ways to be sparse, in one process.

    python examples/benchmark.py                        # all; about seven minutes on two cores
    python examples/benchmark.py --only layer --sizes 1024 --batches 128

The variants of one row run in turn, a block of runs each, the first of which is not counted: so each finds the caches
and the memory as its own training loop would leave them, and none has the machine to itself for long. The tables give
medians and their ratios: absolute times differ between machines and from minute to minute, ratios much less.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from convolutions import tables
from crowded import over_threads
from matplotlib.figure import Figure
from recorded import costs
from rich.console import Console
from rich.table import Table
from rivals import rivals
from torch import nn
from torch.nn import functional as F

from sparsify import SET, RigL, SparseLinear, SparseOptimizer, epsilon, plan, plot, sparsify
from sparsify._src import kernels
from sparsify._src.conversion import built_in, convolution_costs, figures, measuring, processor, speed
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window
from sparsify._src.topology import Indices
from sparsify.evolution import by_gradient, by_gradient_among, uniformly

ASKED = {
    "AuthenticAMD": {
        (1024, 128): {0.1: 5, 0.05: 9, 0.01: 20},
        (1024, 512): {0.1: 5, 0.05: 9, 0.01: 20},
        (4096, 128): {0.1: 6, 0.05: 12, 0.01: 40},
        (4096, 512): {0.1: 5, 0.05: 10, 0.01: 30},
        "steps": {0.1: 4.5, 0.05: 8, 0.01: 14},
    },
    "GenuineIntel": {
        (1024, 128): {0.1: 3.3, 0.05: 5.5, 0.01: 11},
        (1024, 512): {0.1: 3.6, 0.05: 6, 0.01: 13},
        (4096, 128): {0.1: 5, 0.05: 9, 0.01: 25},
        (4096, 512): {0.1: 4, 0.05: 7, 0.01: 20},
        "steps": {0.1: 3, 0.05: 5, 0.01: 8},
    },
}.get(processor.described().get("vendor_id", ""), {})
"""What this project set itself for two cores with AVX-512: speed-up over nn.Linear by (n, batch) and density, and of
training steps of 784-1000-1000-1000-10."""

PARTS = ("layer", "inference", "convolutions", "steps", "evolution", "growth", "memory", "plan", "threads", "telemetry")

WIDE = (0.02, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
"""More densities, without the rivals, for the plot: where sparse stops being faster."""

BUDGET = 2**29
"""Activations of one forward pass (connections x batch) above which the gathering rivals are left out."""

console = Console(width=160)


def medians(variants: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, float]:
    """Median milliseconds of each variant; each gets about `seconds` in all, at least three blocks of two runs."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    start = time.perf_counter()
    rounds = 0
    while rounds < 3 or time.perf_counter() - start < seconds * len(variants):
        for name, run in variants.items():
            begun, runs = time.perf_counter(), -1
            while runs < 2 or (runs < 12 and time.perf_counter() - begun < seconds / 5):
                before = time.perf_counter()
                run()
                runs += 1
                if runs:
                    times[name].append((time.perf_counter() - before) * 1e3)
        rounds += 1
    return {name: statistics.median(own) for name, own in times.items()}


def step(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    """Forward and backward through one layer, gradients of the input included."""

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(grad)

    return run


def answer(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward through one layer, without gradients."""

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def layers(
    sizes: list[int], batches: list[int], densities: Sequence[float], seconds: float, compare: bool
) -> list[dict]:
    """Time one n x n layer with bias, row-major in and out; prints a row at a time and returns them."""
    others = rivals() if compare else {}
    console.rule(f"one n x n layer, forward + backward: ms, and times faster than nn.Linear ({', '.join(others)})")
    results = []
    for n in sizes:
        for batch in batches:
            x, grad = torch.randn(batch, n, requires_grad=True), torch.randn(batch, n)
            for density in densities:
                made = {"nn.Linear": nn.Linear(n, n), "sparsify": SparseLinear(n, n, density)}
                for name, make in others.items():
                    gathers = name in ("gather-scatter", "torch_sparse")
                    if not gathers or density * n * n * batch <= BUDGET:
                        made[name] = make(n, n, density)
                found = medians({name: step(layer, x, grad) for name, layer in made.items()}, seconds)
                results.append({"n": n, "batch": batch, "density": density, "ms": found})
                dense = found["nn.Linear"]
                asked = ASKED.get((n, batch), {}).get(density)
                cells = [f"{name} {ms:.2f} ({dense / ms:.2f} x)" for name, ms in found.items() if name != "nn.Linear"]
                bar = f"asked {asked}" if asked else ""
                console.print(f"n {n:5} batch {batch:4} density {density:<5g} nn.Linear {dense:7.2f} ", *cells, bar)
    return results


def bare(n: int, batch: int, densities: Sequence[float], seconds: float) -> Table:
    """The native kernels without autograd, and what is left of the layer's step: autograd and Python."""
    title = f"native kernels alone, {n} x {n}, batch {batch}"
    table = Table(
        "density", "forward ms", "GFLOP/s", "backward ms", "GFLOP/s", "layer's step ms", "rest ms", title=title
    )
    x, grad = torch.randn(batch, n), torch.randn(batch, n)
    leaf = x.clone().requires_grad_()
    for density in densities:
        layer = SparseLinear(n, n, density)
        indices = Indices(layer.crow, layer.col, layer.ccol, layer.csc_row, layer.csc_order)
        values, bias = layer.values.detach(), layer.bias.detach()
        variants: dict[str, Callable[[], object]] = {
            "forward": partial(kernels.native.forward, x, values, bias, indices),
            "backward": partial(kernels.native.backward, grad, x, values, indices, (True, True, True)),
            "step": step(layer, leaf, grad),
        }
        forward, backward, whole = medians(variants, seconds).values()
        work = 2 * layer.nnz * batch / 1e6
        cells = f"{forward:.3f}", f"{work / forward:.0f}", f"{backward:.3f}", f"{2 * work / backward:.0f}"
        table.add_row(f"{density:g}", *cells, f"{whole:.3f}", f"{whole - forward - backward:.3f}")
    return table


def inference(n: int, density: float, seconds: float) -> Table:
    """Small batches without gradients."""
    table = Table("batch", "nn.Linear ms", "SparseLinear ms", "speed-up", title=f"inference, {n} x {n}, {density:g}")
    dense, sparse = nn.Linear(n, n), SparseLinear(n, n, density)
    with torch.no_grad():
        for batch in (1, 2, 4, 8, 16, 32):
            x = torch.randn(batch, n)
            found = medians({"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, seconds)  # noqa: B023
            one, other = found.values()
            table.add_row(str(batch), f"{one:.3f}", f"{other:.3f}", f"{one / other:.2f}")
    return table


def calls(seconds: float) -> Table:
    """What a call of a small layer costs, where all of it is PyTorch and Python."""
    table = Table("32 x 32", "nn.Linear us", "SparseLinear us", "more", title="one call of a small layer")
    dense, sparse = nn.Linear(32, 32), SparseLinear(32, 32, 0.3)

    def often(layer: nn.Module, mode: Callable[[], AbstractContextManager[object]], x: torch.Tensor) -> None:
        with mode():
            for _ in range(100):
                layer(x)

    def train(layer: nn.Module, x: torch.Tensor) -> None:
        for _ in range(100):
            layer(x).backward(x)

    for batch in 1, 32:
        x = torch.randn(batch, 32)
        rows = {
            f"batch {batch}, {mode.__name__}": partial(often, mode=mode, x=x)
            for mode in (torch.no_grad, torch.inference_mode)
        }
        rows[f"batch {batch}, forward"] = partial(often, mode=nullcontext, x=x)
        rows[f"batch {batch}, forward and backward"] = partial(train, x=x)
        for name, run in rows.items():
            found = medians({"dense": partial(run, dense), "sparse": partial(run, sparse)}, seconds)
            one, other = (ms * 10 for ms in found.values())
            table.add_row(name, f"{one:.1f}", f"{other:.1f}", f"{other - one:.1f}")
    return table


def perceptron(*sizes: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """An MLP with its inputs and labels, 128 of them."""
    parts = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*parts[:-1]), torch.randn(128, sizes[0]), torch.randint(sizes[-1], (128,))


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Two encoder layers of BERT's size, with tokens that are embedded already, 4 x 128, and their labels."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    head = nn.Sequential(nn.Flatten(0, 1), nn.Linear(768, 100))
    return nn.Sequential(encoder, head), torch.randn(4, 128, 768), torch.randint(100, (512,))


def whole_steps(densities: Sequence[float], seconds: float) -> Table:
    """Training steps of whole networks: loss, backward, SGD with momentum; the last layer stays dense."""
    table = Table("network", "density", "dense ms", "sparse ms", "speed-up", "asked", title="training step")
    networks = {
        "784-1000-1000-1000-10, batch 128": (
            partial(perceptron, 784, 1000, 1000, 1000, 10),
            ASKED.get("steps", {}),
        ),
        "LeNet-300-100, batch 128": (partial(perceptron, 784, 300, 100, 10), {0.05: 2}),
        "2 encoder layers of width 768, 4 x 128 tokens": (transformer, {}),
    }

    def training(
        make: Callable[[], tuple[nn.Module, torch.Tensor, torch.Tensor]], density: float
    ) -> Callable[[], None]:
        model, x, y = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if density < 1:
            model, optimizer = sparsify(model, optimizer, density, skip=[str(len(model) - 1)])

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return run

    for name, (make, asked) in networks.items():
        for density in densities:
            found = medians({"dense": training(make, 1), "sparse": training(make, density)}, seconds)
            one, other = found.values()
            cells = f"{one:.2f}", f"{other:.2f}", f"{one / other:.2f}", str(asked.get(density, ""))
            table.add_row(name, f"{density:g}", *cells)
    return table


def evolution(sizes: list[int], seconds: float) -> Table:
    """Creation, and evolution with Adam against the training step."""
    title = "creation; evolution with Adam (five vectors move), share of the training time at interval 100, batch 128"
    table = Table("layer", "connections", "create ms", "step ms", "evolve ms", "share", title=title)
    for n, density in [(1024, epsilon(11)((1024, 1024))), *((n, 0.1) for n in sizes)]:
        model = SparseLinear(n, n, density)
        optimizer = torch.optim.Adam(model.parameters())
        optimizer = SparseOptimizer(optimizer, {"": model}, SET(interval=None))
        x = torch.randn(128, n)

        def train(model=model, optimizer=optimizer, x=x) -> None:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

        train()
        variants = {
            "step": train,
            "evolve": optimizer.evolve,
            "create": lambda: SparseLinear(n, n, density),  # noqa: B023
        }
        found = medians(variants, seconds)
        share = found["evolve"] / found["step"] / 100
        cells = f"{found['create']:.2f}", f"{found['step']:.2f}", f"{found['evolve']:.2f}", f"{share:.1%}"
        table.add_row(f"{n} x {n}", f"{model.nnz:,}", *cells)
    return table


def growth(n: int, density: float, batch: int = 128) -> Table:
    """Memory and time of an evolution that grows at random, by gradient, and with the dense gradient held."""
    title = f"an evolution of {n} x {n} at {density:g}"
    table = Table("growth", "MiB beyond the layer", "seconds", title=title)
    for name in "uniformly", "by_gradient_among(8)", "by_gradient", "dense gradient, topk":
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # the peak of a process never falls
            mebibytes, seconds = pool.submit(_grow_once, name, n, density, batch).result()
        table.add_row(name, f"{mebibytes:.0f}", f"{seconds:.2f}")
    return table


def _grow_once(name: str, n: int, density: float, batch: int) -> tuple[float, float]:
    def peak() -> int:  # of this process since it began; getrusage would count its parent's too
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

    rules = {"uniformly": uniformly, "by_gradient_among(8)": by_gradient_among(8)}
    model = SparseLinear(n, n, density)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        {"": model},
        RigL(interval=None, drop_fraction=0.3, grow=rules.get(name, by_gradient)),
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(batch, n)).square().sum().backward()
        optimizer.step()
    if name == "dense gradient, topk":
        optimizer = None
        operands = torch.randn(batch, n), torch.randn(batch, n)
        before, start = peak(), time.perf_counter()
        gradient = (operands[0].t() @ operands[1]).flatten()
        gradient[model.flat()] = 0
        gradient.abs_().topk(int(0.3 * model.nnz))
    else:
        before, start = peak(), time.perf_counter()
        optimizer.evolve()
    return (peak() - before) / 1024, time.perf_counter() - start


def roofline(results: list[dict]) -> Table:
    """How near to the machine's peaks the products come: 6 operations a connection and batch entry."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    memory = torch.randn(2**26)
    target = torch.empty_like(memory)
    found = medians({"multiply": lambda: a @ b, "copy": lambda: target.copy_(memory)}, 1.0)
    peak = 2 * 2048**3 / found["multiply"] / 1e6
    bandwidth = 2 * memory.nbytes / found["copy"] / 1e6
    title = f"against measured peaks: matrix product {peak:.0f} GFLOP/s, copy {bandwidth:.0f} GB/s"
    table = Table("n", "batch", "density", "dense GFLOP/s", "sparse GFLOP/s", "activations read, GB/s", title=title)
    for row in results:
        n, batch, density, ms = row["n"], row["batch"], row["density"], row["ms"]
        work = 6 * n * n * batch / 1e6
        sparse = work * density / ms["sparsify"]
        # a connection reads one activation forward and one backward for each batch entry: 8 bytes
        table.add_row(
            str(n),
            str(batch),
            f"{density:g}",
            f"{work / ms['nn.Linear']:.0f}",
            f"{sparse:.0f}",
            f"{sparse / 6 * 8:.0f}",
        )
    return table


def memory(n: int = 4096, density: float = 0.1) -> str:
    """Bytes a connection that a training step with Adam holds."""
    model = SparseLinear(n, n, density, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, n)).sum().backward()
    optimizer.step()
    state = [t for held in optimizer.state.values() for t in held.values() if torch.is_tensor(t)]
    tensors = [model.values, model.values.grad, *model.buffers(), *state]
    size = sum(t.nbytes for t in tensors) / model.nnz
    return f"Adam, {n} x {n} at {density:g}: {size:.2f} bytes a connection are held (asked: at most 32)"


def fit(seconds: float) -> None:
    """Measure this machine as the tables of conversion/built_in.py, and print one."""
    grid = np.full(figures.GRID, np.nan)
    for k, size in enumerate(figures.SIZES):
        grid[:, k] = measuring.grid([size], seconds)[:, k]
        console.print(f"measured {size} x {size}")
    print(built_in.written(grid))
    print(built_in.written_costs(fit_convolutions(seconds)))


FITTED = (
    (3, 64, 7, 2, 64, 32, 1),
    (3, 32, 3, 1, 32, 128, 1),
    (16, 16, 3, 1, 32, 128, 1),
    (32, 64, 5, 1, 16, 128, 1),
    (64, 64, 3, 1, 16, 64, 1),
    (64, 64, 3, 1, 56, 16, 1),
    (64, 64, 1, 1, 32, 32, 1),
    (64, 256, 1, 1, 28, 16, 1),
    (256, 64, 1, 1, 28, 16, 1),
    (64, 128, 3, 2, 32, 64, 1),
    (128, 128, 3, 1, 16, 32, 1),
    (128, 128, 3, 1, 8, 128, 4),
    (256, 256, 3, 1, 8, 64, 1),
    (256, 256, 3, 1, 14, 4, 1),
    (256, 256, 3, 1, 14, 1, 1),
    (1024, 256, 1, 1, 14, 16, 1),
    (512, 512, 3, 1, 4, 64, 1),
    (512, 512, 3, 1, 7, 16, 1),
)
"""Convolutions that coefficients are fitted to: channels in and out, kernel, stride, size, images, groups."""


def fit_convolutions(seconds: float) -> convolution_costs.Costs:
    """Measure convolutions on this machine, and find what a unit of each kind of work costs here."""
    lanes, dense, sparse = built_in.LANES.get(speed.form(), 0), [], []
    for training in False, True:
        work, times, sparse_work, sparse_times = [], [], [], []
        for ins, outs, kernel, stride, size, images, groups in FITTED:
            window = Window((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), groups)
            place = Place(training, outs, ins // groups * kernel**2, images, window, (size, size))
            counts = [round(density * place.out_features * place.in_features) for density in (0.01, 0.1, 0.3)]
            pair = measuring.layer(place, *counts, seconds=seconds)
            work.append(convolution_costs.dense_work(place))
            times.append(pair.dense)
            sparse_work += [convolution_costs.sparse_work(place, nnz, max(1, lanes)) for nnz in counts]
            sparse_times += pair.sparse.values()
        for name, found, kinds, ms in ("dense", dense, work, times), ("sparse", sparse, sparse_work, sparse_times):
            found.append(convolution_costs.fitted(kinds, ms))
            off = np.exp(np.abs(np.log(np.stack(kinds) @ found[-1] / np.array(ms))))
            use = "training" if training else "inference"
            console.print(f"{name} convolutions, {use}: off by {np.median(off) - 1:.0%}, {off.max():.2f} times at most")
    return convolution_costs.Costs(lanes, tuple(dense), tuple(sparse), "this machine")


def planned(
    sizes: list[int], batches: list[int], densities: Sequence[float], seconds: float, folder: Path
) -> list[dict]:
    """What `plan` says beside what is measured: n x n, and 4n x n as far as that is no wider than 4096.

    "plan" has measured the layer itself, "grid" only square ones, "built-in" nothing.

    Args:
        folder: for what `plan` measures, anew.
    """
    shapes = [(n, n) for n in sizes] + [(4 * n, n) for n in sizes if 4 * n <= 4096]
    results = []
    os.environ["SPARSIFY_CACHE"] = str(folder)
    for outs, ins in shapes:
        for batch, training in product(batches, (True, False)):
            x, grad = torch.randn(batch, ins, requires_grad=True), torch.randn(batch, outs)
            made = {"dense": nn.Linear(ins, outs)} | {f"{d:g}": SparseLinear(ins, outs, d) for d in densities}
            run = partial(step, x=x, grad=grad) if training else partial(answer, x=x.detach())
            found = medians({name: run(layer) for name, layer in made.items()}, seconds)
            for density in densities:
                use, nnz = speed.Use(batch, training), made[f"{density:g}"].nnz
                built = built_in.nearest(processor.described(), speed.form())
                report = plan(made["dense"], {"*": density}, batch=batch, training=training, measure=True)
                if report.notes[-1:] and "not measured" in report.notes[-1]:
                    console.print(f"{outs} x {ins}, batch {batch}, density {density:g}: {report.notes[-1]}")
                    continue
                alone = replace(speed.figures(), layers={})
                told = {"measured": found["dense"] / found[f"{density:g}"], "plan": report.speed_up}
                for name, known in ("grid", alone), ("built-in", built):
                    told[name] = known.dense((outs, ins), *use) / known.sparse((outs, ins), nnz, *use)
                row = {"shape": [outs, ins], "batch": batch, "training": training, "density": density} | told
                results.append(row)
                console.print(
                    f"{outs:4} x {ins:4} batch {batch:3} {'training ' if training else 'inference'} {density:<5g}",
                    *(f"{name} {value:.2f} x" for name, value in told.items()),
                )
    for name in ("plan", "grid", "built-in") if results else ():
        off = np.exp([abs(np.log(row[name] / row["measured"])) for row in results])
        console.print(
            f"{name} is off by {np.median(off) - 1:.0%} in the median, {np.quantile(off, 0.9) - 1:.0%} at the ninth "
            f"decile, {off.max():.2f} times at most; within 25 % are {(off <= 1.25).mean():.0%} of {len(off)}"
        )
    return results


def save_picture(results: list[dict], path: Path) -> None:
    """Speed-up over density, a curve for each n and batch, with the crossover marked."""
    curves: dict[str, dict[float, float]] = {}
    for row in sorted(results, key=lambda row: (row["n"], row["batch"])):
        factors = curves.setdefault(f"{row['n']} x {row['n']}, batch {row['batch']}", {})
        factors[row["density"]] = row["ms"]["nn.Linear"] / row["ms"]["sparsify"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = plot.speed(curves, figure.subplots())
    axes.set_title(f"forward + backward of one layer, {torch.get_num_threads()} CPU threads")
    axes.set_ylabel("times faster than nn.Linear")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables, save the plot and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts, not all")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant of each row")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--evolved", type=int, nargs="+", default=[1024, 3200, 10_240], help="sizes, density 0.1")
    parser.add_argument("--grown", type=float, nargs=2, default=[8192, 0.01], metavar=("N", "DENSITY"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument(
        "--fit", action="store_true", help="print a table of built-in figures for plan(), and nothing else"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    level = ("no AVX", "AVX2", "AVX-512")[kernels.native.LEVEL]
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()} with {level}")
    if options.fit:
        fit(options.seconds / 20)
        return
    if "layer" in options.only:
        results = layers(options.sizes, options.batches, options.densities, options.seconds, compare=True)
        for sizes, densities in ([512], (*options.densities, *WIDE)), (options.sizes, WIDE):
            results += layers(sizes, options.batches[:1], densities, options.seconds, compare=False)
        console.print(roofline(results))
        if kernels.native.available():
            console.print(bare(options.sizes[0], options.batches[0], options.densities, options.seconds))
        save_picture(results, options.out / "benchmark.png")
        (options.out / "benchmark.json").write_text(json.dumps(results, indent=1))
        console.print(f"saved {options.out / 'benchmark.png'} and {options.out / 'benchmark.json'}")
    if "inference" in options.only:
        console.print(inference(options.sizes[-1], 0.1, options.seconds))
        console.print(calls(options.seconds))
    if "convolutions" in options.only:
        for table in tables(processor.described().get("vendor_id", ""), options.seconds, medians):
            console.print(table())
    if "steps" in options.only:
        console.print(whole_steps(options.densities, options.seconds))
    if "evolution" in options.only:
        console.print(evolution(options.evolved, options.seconds))
    if "growth" in options.only:
        console.print(growth(int(options.grown[0]), options.grown[1]))
    if "memory" in options.only:
        console.print(memory())
    if "threads" in options.only:
        console.print(over_threads(options.seconds))
    if "telemetry" in options.only:
        console.print(costs(options.seconds))
    if "plan" in options.only:
        with TemporaryDirectory() as folder:
            results = planned(options.sizes, options.batches, options.densities, options.seconds / 10, Path(folder))
        (options.out / "plan.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
