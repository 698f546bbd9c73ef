"""Train a truly sparse network on MNIST: a plain training loop with one line of sparsify in it.

python examples/mnist.py                       # 10 % of the connections, evolving
python examples/mnist.py --compare             # beside a dense and a static sparse network
python examples/mnist.py --help
"""

import argparse
import sys
import time
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sparsify import GMP, SET, Evolution, GraNet, Record, RigL, SparseLinear, Static, plot, sparsify, summary

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
}


class Result(NamedTuple):
    """One training run."""

    variant: str
    accuracies: list[float]  # test accuracy after each epoch, in percent
    parameters: int
    bytes: int  # weights, their indices and optimizer state
    seconds: float  # an epoch, without testing
    inputs_before: Tensor | None  # connections of each input pixel
    inputs_after: Tensor | None
    history: list[Record]  # of its evolutions
    steps: int  # of an epoch


DIGITS = {"hidden": [1000, 1000], "density": 0.05, "dense_last": True, "epochs": 60, "lr": 0.03, "interval": 5}
"""What is not given, for scikit-learn's digits: wide layers, as sparse is faster there; the last one, of ten units,
would be slower, and stays dense. Of the 900 steps the first 3/4 evolve."""

ALGORITHMS = {"static": Static, "SET": SET, "RigL": RigL, "GMP": GMP, "GraNet": GraNet}


def evolution(algorithm: str, steps: int, options: argparse.Namespace) -> Evolution:
    """One of `ALGORITHMS`, with the options that were given; the others follow from the steps."""
    kind = ALGORITHMS[algorithm]
    given = {name: getattr(options, name) for name in ("interval", "drop_fraction", "start_density")}
    given["until"] = None if options.until is None else int(options.until * steps)
    known = signature(kind).parameters
    return kind(**{name: value for name, value in given.items() if value is not None and name in known})


def train(variant: str, data: datasets.Dataset, options: argparse.Namespace) -> Result:
    """Train one network: "dense", or sparse with one of `ALGORITHMS`."""
    torch.manual_seed(options.seed)
    model = mlp([data.train_images.shape[1], *options.hidden, 10])
    rate = {} if options.lr is None else {"lr": options.lr}
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **rate)
    an_epoch = -(-len(data.train_images) // options.batch_size)
    steps = an_epoch * options.epochs

    if variant != "dense":
        model, optimizer = sparsify(
            model,
            optimizer,
            options.density,
            steps=steps,
            evolution=evolution(variant, steps, options),
            skip=[str(2 * len(options.hidden))] if options.dense_last else [],
            grown_values=options.grown_values,
            grown_state=options.grown_state,
            seed=options.seed,
        )

    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    inputs_before, accuracies, seconds = connections_of_inputs(model), [], 0.0
    progress = tqdm(range(options.epochs), desc=f"{variant:>6}", unit="epoch", disable=options.quiet)
    for _ in progress:
        start = time.perf_counter()
        for batch in torch.randperm(len(data.train_images)).split(options.batch_size):
            loss = F.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        seconds += time.perf_counter() - start
        accuracies.append(test(model, data))
        progress.set_postfix(loss=f"{loss.item():.3f}", test=f"{accuracies[-1]:.2f} %")
    if variant != "dense" and not options.quiet:
        print(summary(model))
    parameters = sum(p.numel() for p in model.parameters())
    held, after = held_bytes(model, optimizer), connections_of_inputs(model)
    history = [] if variant == "dense" else optimizer.history
    seconds /= options.epochs
    return Result(variant, accuracies, parameters, held, seconds, inputs_before, after, history, an_epoch)


def with_empty_pixels_at_zero(data: datasets.Dataset) -> datasets.Dataset:
    """The same images, in which what is always empty teaches nothing: else it would be a bias, and keep connections."""
    least = data.train_images.min()
    return data._replace(train_images=data.train_images - least, test_images=data.test_images - least)


def mlp(sizes: list[int]) -> nn.Sequential:
    """A multilayer perceptron with He initialization."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def test(model: nn.Module, data: datasets.Dataset) -> float:
    """Test accuracy in percent."""
    return (model(data.test_images).argmax(1) == data.test_labels).float().mean().item() * 100


def connections_of_inputs(model: nn.Sequential) -> Tensor | None:
    """How many connections each input of the network has; None where its first layer is dense."""
    first = model[0]
    return plot.input_counts(first) if isinstance(first, SparseLinear) else None


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, index buffers and optimizer state."""
    state = [value for buffers in optimizer.state.values() for value in buffers.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers(), *state])


def print_table(results: list[Result]) -> None:
    """The variants side by side."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "test accuracy, last epoch", "parameters", "KiB of weights + optimizer", "s an epoch")
    for column in table.columns[1:]:
        column.justify = "right"
    for r in results:
        cells = f"{r.accuracies[-1]:.2f} %", f"{r.parameters:,}", f"{r.bytes / 1024:,.0f}", f"{r.seconds:.2f}"
        table.add_row(r.variant, *cells)
    Console(width=100).print(table)


def plot_accuracy(results: list[Result], path: Path, title: str) -> None:
    """Test accuracy over epochs, and when the last network evolved."""
    curves = {f"{r.variant}: {r.accuracies[-1]:.2f} %, {r.parameters:,} parameters": r.accuracies for r in results}
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    last = results[-1]
    axes = plot.epochs(curves, last.history or None, last.steps, figure.subplots())
    axes.set(title=title, ylabel="test accuracy (%)")
    figure.savefig(path, dpi=150)


def plot_inputs(result: Result, data: datasets.Dataset, path: Path) -> None:
    """Connections of each input pixel before and after training, beside the images: SET finds where they differ."""
    before, after, shape = result.inputs_before, result.inputs_after, (data.side, data.side)
    figure = Figure(figsize=(11.5, 3.4), layout="constrained")
    images, first, second = figure.subplots(1, 3)
    drawn = images.imshow(data.train_images.std(0).view(shape), vmin=0, cmap="gray")
    figure.colorbar(drawn, ax=images, label="standard deviation")
    images.set(title=f"{data.name}: how much each pixel varies", xticks=[], yticks=[])
    most = float(torch.maximum(before, after).max())
    plot.inputs(before, shape, first, most).set_title("connections at the start (random)")
    plot.inputs(after, shape, second, most).set_title(f"at the end ({result.variant})")
    figure.savefig(path, dpi=150)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    written = ", ".join(f"{name} {value}" for name, value in DIGITS.items())
    parser = argparse.ArgumentParser(
        description="Train a truly sparse network on MNIST.",
        epilog=f"For digits the defaults are others: {written}; a dense network is trained beside.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--density", type=float, default=0.1, help="share of the connections kept, in (0, 1]")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="SET", help="how the topology evolves")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--lr", type=float, help="learning rate; default: 0.1 for sgd, else 0.001")
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 100], metavar="UNITS", help="hidden layers")
    parser.add_argument("--dense-last", action="store_true", help="leave the last layer dense")
    given = parser.add_argument_group("evolution", "what is not given follows from how long training is")
    given.add_argument("--interval", type=int, help="optimizer steps between evolutions")
    given.add_argument("--drop-fraction", type=float, help="share of the connections dropped at each, constant")
    given.add_argument("--start-density", type=float, help="of GraNet and GMP")
    given.add_argument("--until", type=float, help="share of the training after which evolution stops")
    parser.add_argument("--grown-values", choices=["zero", "fan_in_uniform"], default="zero")
    parser.add_argument("--grown-state", choices=["zero", "mean"], default="zero")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", metavar="FOLDER", help="with the IDX .gz files; default: $SPARSIFY_DATA, or download")
    parser.add_argument("--dataset", choices=["mnist", "fashion", "digits"], default="mnist")
    parser.add_argument("--compare", action="store_true", help="train dense and static sparse beside it")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where pictures are saved")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main() -> None:
    """Train, print a table, save two pictures."""
    command_line = parser()
    options = command_line.parse_args()
    try:
        data = datasets.load(options.dataset, options.data)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"mnist.py: {error}")
    is_small = data.name == "digits"
    if is_small:
        command_line.set_defaults(**DIGITS)
        options, data = command_line.parse_args(), with_empty_pixels_at_zero(data)
    beside = ["dense", "static"] if options.compare else ["dense"] if is_small else []
    variants = list(dict.fromkeys([*beside, options.algorithm]))
    results = [train(variant, data, options) for variant in variants]
    print_table(results)
    options.out.mkdir(parents=True, exist_ok=True)
    network = "-".join(map(str, [data.train_images.shape[1], *options.hidden, 10]))
    accuracy, inputs = options.out / f"{data.name}-accuracy.png", options.out / f"{data.name}-inputs.png"
    plot_accuracy(results, accuracy, f"{data.name}, {network}, density {options.density:g}")
    print(f"saved {accuracy}")
    if results[-1].inputs_before is not None:
        plot_inputs(results[-1], data, inputs)
        print(f"saved {inputs}")


if __name__ == "__main__":
    main()
