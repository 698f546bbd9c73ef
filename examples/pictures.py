"""Make the pictures of the documentation: each function of sparsify.plot, on networks trained here.

    python examples/pictures.py --data FOLDER                 # all, into docs/pictures; some minutes on two cores
    python examples/pictures.py --data FOLDER --only graph.png graph.gif

FOLDER holds MNIST's four IDX .gz files; $SPARSIFY_DATA does as well. Runs of the sweep over densities that are finished
are kept in runs/compare.jsonl, so it goes on where it was.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import compare_algorithms
import datasets
import mnist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify import SET, Record, plot, sparsify

DPI = 110
COLOURS = 128
SHAPE = (28, 28)
INFORMATIVE = 4
"""Inputs of the tiny network that decide; the others are noise."""


class Trained(NamedTuple):
    """One training run.

    before, after: the model, at the start and in the end.
    losses: of each step.
    history: the records of its evolutions.
    film: of a frame after each.
    """

    before: nn.Module
    after: nn.Module
    losses: list[float]
    history: list[Record]
    film: plot.Film


@cache
def lenet(data: str | None, density: float = 0.1, epochs: int = 10) -> Trained:
    """LeNet-300-100 on MNIST, by SET; a pixel that is always empty is 0, and so no bias."""
    images = datasets.load("mnist", data)
    if images.name != "mnist":
        sys.exit("pictures.py: --data must be a folder with MNIST's four IDX .gz files.")
    images = mnist.with_empty_pixels_at_zero(images)
    torch.manual_seed(0)
    model = mnist.mlp([784, 300, 100, 10])
    film = plot.Film.inputs(lambda: model[0], SHAPE)
    chosen = [batch for _ in range(epochs) for batch in torch.randperm(len(images.train_images)).split(100)]
    batches = ((images.train_images[batch], images.train_labels[batch]) for batch in chosen)
    return _trained(model, SET(interval=50), film, batches, len(chosen), density=density, rate=0.1, weight_decay=5e-4)


@cache
def tiny(inputs: int = 16, steps: int = 4000) -> Trained:
    """A network of 16, 12 and 2 units, whose label depends on its first four inputs alone."""
    torch.manual_seed(0)
    model = mnist.mlp([inputs, 12, 2])
    film = plot.Film(lambda axes: graph_of(model, axes), size=(5.6, 3.8))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            x = torch.randn(64, inputs)
            yield x, (x[:, 0] + x[:, 1] > x[:, 2] * x[:, 3]).long()

    evolution = SET(interval=80, drop_fraction=0.2, until=int(0.8 * steps))
    return _trained(model, evolution, film, batches(), steps, density=0.3, rate=0.05, weight_decay=5e-3)


def graph_of(model: nn.Module, axes: Axes) -> Axes:
    """The tiny network as a graph, with a bracket at the inputs that decide."""
    plot.graph(model, axes)
    bottom = 1 - (INFORMATIVE - 1) / (model[0].in_features - 1)
    axes.plot([-0.1, -0.13, -0.13, -0.1], [1, 1, bottom, bottom], color="black", linewidth=1)
    axes.text(-0.16, (1 + bottom) / 2, "what decides", rotation=90, ha="right", va="center", fontsize="small")
    axes.set_xlim(left=-0.3)
    return axes


def _trained(
    model: nn.Module,
    evolution: SET,
    film: plot.Film,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    *,
    density: float,
    rate: float,
    weight_decay: float,
) -> Trained:
    """Train by SGD, with a frame of the start first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    model, optimizer = sparsify(model, optimizer, density, evolution=evolution, steps=steps, on_evolve=film, seed=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    before, losses = copy.deepcopy(model), []
    film.take("at the start")
    for x, labels in batches:
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return Trained(before, model, losses, optimizer.history, film)


def sweep_options(data: str | None, jobs: int) -> argparse.Namespace:
    """Those of the sweep: LeNet-300-100 on MNIST."""
    words = "--densities .01 .02 .05 .1 .2 --seeds 2 --epochs 10 --algorithms dense static SET RigL".split()
    options = compare_algorithms.parser().parse_args([*words, "--jobs", str(jobs)])
    options.data = data
    return options


@cache
def swept(data: str | None, jobs: int) -> dict[tuple[float, str], list[dict]]:
    """(density, variant) -> the record of each seed."""
    return compare_algorithms.train_missing(sweep_options(data, jobs))


def front(options: argparse.Namespace) -> Figure:
    """The input map before and after training, beside accuracy over density."""
    run, figure = lenet(options.data), Figure(figsize=(11.5, 3.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    first, second, third = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
    _input_maps(run, first, second)
    results = compare_algorithms.accuracies(swept(options.data, options.jobs))
    plot.accuracy(results, third).set(title="MNIST, LeNet-300-100", ylabel="test accuracy (%)")
    return figure


def _input_maps(run: Trained, *axes: Axes) -> None:
    counts = [plot.input_counts(model[0]) for model in (run.before, run.after)]
    most = float(max(each.max() for each in counts))
    for each, axis, title in zip(counts, axes, ("start: random, density 0.1", "end: where digits differ"), strict=True):
        plot.inputs(each, SHAPE, axis, most).set_title(title)


def inputs(options: argparse.Namespace) -> Figure:
    """The input map before and after training."""
    figure = Figure(figsize=(8.2, 3.5), layout="constrained")
    _input_maps(lenet(options.data), *figure.subplots(1, 2))
    return figure


def topology(options: argparse.Namespace) -> Figure:
    """The first layer's connections before and after training, on one scale."""
    run, figure = lenet(options.data), Figure(figsize=(10.5, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    plot.topology(run.after[0], second)
    top = second.images[0].norm.vmax
    plot.topology(run.before[0], first, most=top)
    for axis, words in (first, "start"), (second, "end"):
        axis.set_title(f"{words}: {axis.get_title()}", fontsize="medium")
    return figure


def _one(size: tuple[float, float], draw: Callable[[Axes], object]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return figure


def epochs(options: argparse.Namespace) -> Figure:
    """Accuracy after each epoch, of the first seed, beside dense and static ones of the sweep."""
    settings = argparse.Namespace(**{**vars(sweep_options(options.data, options.jobs)), "density": 0.05, "seed": 0})
    evolved = mnist.train("SET", datasets.load("mnist", options.data), settings)
    found = swept(options.data, options.jobs)
    dense, static = (found[place][0]["accuracies"] for place in ((1.0, "dense"), (0.05, "static")))
    runs = {"dense": dense, "SET, density 0.05": evolved.accuracies, "static, density 0.05": static}
    curves = {f"{name}: {accuracies[-1]:.2f} %": accuracies for name, accuracies in runs.items()}
    return _one((7, 4.2), lambda axes: plot.epochs(curves, evolved.history, evolved.steps, axes))


MADE: dict[str, Callable[[argparse.Namespace], Figure | plot.Film]] = {
    "front.png": front,
    "inputs.png": inputs,
    "topology.png": topology,
    "weights.png": lambda options: _one(
        (7, 4.2), lambda axes: plot.weights(lenet(options.data).before[0], lenet(options.data).after[0], axes)
    ),
    "degrees.png": lambda options: _one((7, 4.2), lambda axes: plot.degrees(lenet(options.data).history, "0", axes)),
    "explored.png": lambda options: _one((7, 4.2), lambda axes: plot.explored(lenet(options.data).history, axes)),
    "turnover.png": lambda options: _one((7, 4.2), lambda axes: plot.turnover(lenet(options.data).history, axes)),
    "loss.png": lambda options: _one(
        (7, 4.2), lambda axes: plot.loss(lenet(options.data).losses, lenet(options.data).history, axes)
    ),
    "epochs.png": epochs,
    "accuracy.png": lambda options: _one(
        (7, 4.5),
        lambda axes: plot.accuracy(compare_algorithms.accuracies(swept(options.data, options.jobs)), axes),
    ),
    "graph.png": lambda _: _one((7, 4.5), lambda axes: graph_of(tiny().after, axes)),
    "inputs.gif": lambda options: lenet(options.data).film,
    "graph.gif": lambda _: tiny().film,
}
"""File -> what makes it."""


def save(made: Figure | plot.Film, path: Path) -> None:
    """Save a picture, with few colours, or a film."""
    if isinstance(made, plot.Film):
        made.save(path)
        return
    made.savefig(path, dpi=DPI)
    few = Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Make the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="FOLDER", help="with MNIST's IDX .gz files; default: $SPARSIFY_DATA")
    parser.add_argument("--only", nargs="+", choices=MADE, default=list(MADE), help="these pictures, not all")
    parser.add_argument("--jobs", type=int, default=2, help="runs of the sweep at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), metavar="FOLDER")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = options.out / name
        save(MADE[name](options), path)
        print(f"saved {path}, {path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
