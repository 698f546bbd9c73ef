"""Accuracy of the evolution algorithms over densities and seeds, beside dense: a table and a picture.

    python examples/compare_algorithms.py --densities .01 .02 .05 .1
    python examples/compare_algorithms.py --algorithms SET RigL --seeds 1 --epochs 20 --dataset fashion

Runs that are finished are kept in runs/compare.jsonl: Ctrl-C ends a sweep at once, and the same command goes on where
it was; remove the file to train anew. Takes the options of mnist.py too.
"""

import argparse
import json
import statistics
from pathlib import Path

import datasets
import mnist
import sweep
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sparsify import plot

EVOLUTION_KEYS = ("interval", "drop_fraction", "start_density", "grown_values", "grown_state", "until")
KEYS = ("dataset", "epochs", "batch_size", "optimizer", "lr", "hidden", "density", "seed", *EVOLUTION_KEYS)


def run(variant: str, settings: dict) -> dict:
    """Train one network on one core; its settings and accuracies."""
    torch.set_num_threads(1)
    options = argparse.Namespace(**settings)
    result = mnist.train(variant, datasets.load(options.dataset, options.data), options)
    own = {"variant": variant, "accuracies": result.accuracies, "seconds": result.seconds}
    return {**own, **{key: settings[key] for key in KEYS}}


def identity(record: dict) -> str:
    """What makes two runs the same; evolution's settings only count where there is one."""
    keys = ["variant", *KEYS]
    if record["variant"] in ("dense", "static"):
        keys = [key for key in keys if key not in EVOLUTION_KEYS]
    return json.dumps([record[key] for key in keys if key != "density" or record["variant"] != "dense"])


def last_epochs(records: list[dict]) -> str:
    """Mean and standard deviation of the test accuracy after the last epoch."""
    last = [record["accuracies"][-1] for record in records]
    spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
    return f"{statistics.mean(last):.2f}{spread}" if last else ""


def print_table(found: dict[tuple[float, str], list[dict]], title: str) -> None:
    """One row for each density, one column for each algorithm."""
    variants = list(dict.fromkeys(variant for _, variant in found))
    table = Table("density", *variants, title=title)
    for density in sorted({density for density, _ in found}):
        table.add_row(f"{density:g}", *(last_epochs(found.get((density, variant), [])) for variant in variants))
    Console(width=130).print(table)


def save_picture(found: dict[tuple[float, str], list[dict]], path: Path, title: str) -> None:
    """Accuracy over density, a line for each algorithm and a level for dense."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    plot.accuracy(accuracies(found), figure.subplots()).set_title(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def parser() -> argparse.ArgumentParser:
    """The command line: that of mnist.py and more."""
    parser = mnist.parser()
    parser.add_argument("--densities", type=float, nargs="+", default=[0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--algorithms", nargs="+", choices=("dense", *mnist.ALGORITHMS), default=["dense", *mnist.ALGORITHMS]
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.set_defaults(epochs=100, quiet=True)
    return parser


def train_missing(options: argparse.Namespace) -> dict[tuple[float, str], list[dict]]:
    """Train what is not finished yet: (density, variant) -> the record of each seed."""
    kept = sweep.Kept(options.out / "compare.jsonl", identity)

    wanted = {}
    for variant in options.algorithms:
        for density in options.densities if variant != "dense" else [1.0]:
            for seed in range(options.seeds):
                settings = {**vars(options), "density": density, "seed": seed}
                key = identity({"variant": variant, **settings})
                wanted.setdefault((density, variant), []).append((key, settings))
    runs = {key: (variant, settings) for (_, variant), own in wanted.items() for key, settings in own}
    sweep.run(run, [runs[key] for key in runs if key not in kept.results], kept, options.jobs)

    return {place: [kept.results[key] for key, _ in runs] for place, runs in wanted.items()}


def accuracies(found: dict[tuple[float, str], list[dict]]) -> dict[str, dict[float, list[float]]]:
    """Variant -> density -> test accuracy after the last epoch, for each seed."""
    results: dict[str, dict[float, list[float]]] = {}
    for (density, variant), records in found.items():
        results.setdefault(variant, {})[density] = [record["accuracies"][-1] for record in records]
    return results


def main() -> None:
    """Train what is missing, print the table, save the picture."""
    options = parser().parse_args()
    found = train_missing(options)
    network = "-".join(map(str, options.hidden))
    title = (
        f"{options.dataset}, hidden layers {network}, test accuracy after epoch {options.epochs}, {options.seeds} seeds"
    )
    print_table(found, title)
    picture = options.out / f"{options.dataset}-algorithms.png"
    save_picture(found, picture, title)
    print(f"saved {picture}")


if __name__ == "__main__":
    main()
