"""Accuracy of dense, static sparse and SET networks over densities and seeds: the table in the README.

    python examples/accuracy.py --densities .01 .02 .05 .1

Runs that are finished are kept in runs/accuracy.jsonl, so a sweep that was stopped goes on where it was. Takes the
options of mnist.py too.
"""

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import datasets
import mnist
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

EVOLUTION_KEYS = ("interval", "drop_fraction", "grown_values", "grown_state", "until")
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
    keys = [key for key in ("variant", *KEYS) if record["variant"] == "SET" or key not in EVOLUTION_KEYS]
    return json.dumps([record[key] for key in keys if key != "density" or record["variant"] != "dense"])


def main() -> None:
    """Train what is missing, print the table."""
    parser = mnist.parser()
    parser.add_argument("--densities", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=["dense", "static", "SET"])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    options = parser.parse_args()
    options.quiet = True
    options.epochs = options.epochs or 100
    path: Path = options.out / "accuracy.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if path.exists():
        done = {identity(record): record for record in map(json.loads, path.read_text().splitlines())}

    wanted = {}
    for variant in options.variants:
        for density in options.densities if variant != "dense" else [1.0]:
            for seed in range(options.seeds):
                settings = {**vars(options), "density": density, "seed": seed}
                key = identity({"variant": variant, **settings})
                wanted.setdefault((density, variant), []).append((key, settings))
    todo = [(v, key, s) for (_, v), runs in wanted.items() for key, s in runs if key not in done]
    with ProcessPoolExecutor(options.jobs) as pool, tqdm(total=len(todo), unit="run") as progress:
        futures = [pool.submit(run, variant, settings) for variant, _, settings in todo]
        for future in as_completed(futures):
            record = future.result()
            done[identity(record)] = record
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            progress.update()

    table = Table("density", *options.variants)
    for density in sorted({density for density, _ in wanted}):
        cells = []
        for variant in options.variants:
            last = [done[key]["accuracies"][-1] for key, _ in wanted.get((density, variant), [])]
            spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
            cells.append(f"{statistics.mean(last):.2f}{spread}" if last else "")
        table.add_row(f"{density:g}", *cells)
    Console().print(f"{options.dataset}, test accuracy after epoch {options.epochs}, {options.seeds} seeds", table)


if __name__ == "__main__":
    main()
