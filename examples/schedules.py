"""`steps=` beside schedules set by hand, on three trainings, short to long: is what follows from the steps good?

    python examples/schedules.py                         # digits, 300 steps: two minutes
    python examples/schedules.py --trainings mnist-6000 --data FOLDER
    python examples/schedules.py --trainings mnist-60000 --data FOLDER --seeds 2 --jobs 2

Runs that are finished are kept in runs/schedules.jsonl: Ctrl-C ends it at once, and the same command goes on where it
was; remove the file to train anew. LeNet-300-100. "by hand" is the best of what `by_hand` gives, chosen by the very
test accuracy that is shown, which favours it.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import datasets
import sweep
import torch
from mnist import mlp, test
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from sparsify import GMP, SET, Evolution, GraNet, RigL, cosine, sparsify

TRAININGS = {"digits-300": ("digits", 300), "mnist-6000": ("mnist", 6_000), "mnist-60000": ("mnist", 60_000)}
UNTIL = {SET: 0.75, RigL: 0.75, GraNet: 0.75, GMP: 0.5}
LONGEST = {SET: 200, RigL: 100, GraNet: 200, GMP: 100}


def by_hand(kind: type[Evolution], steps: int) -> Iterator[Evolution]:
    """Schedules that a user who knows the field might set for so many steps."""
    until = int(UNTIL[kind] * steps)
    intervals = sorted({max(1, min(LONGEST[kind], until // number)) for number in (1, 10, 20, 40)})
    for interval in intervals:
        yield kind(interval=interval, until=until)
    if kind is SET:
        yield from (SET(interval=interval, until=until, drop_fraction=0.3) for interval in intervals)
    if kind is GMP:
        yield from (GMP(interval=interval, until=int(0.75 * steps)) for interval in intervals)
    else:
        yield from (kind(interval=interval, until=until, drop_fraction=cosine(0.5, until)) for interval in intervals)


def default(kind: type[Evolution], steps: int) -> Evolution:
    """What comes without `steps`: no end, but for pruning, which must have one."""
    return kind(until=int(UNTIL[kind] * steps), interval=LONGEST[kind]) if kind in (GMP, GraNet) else kind()


def run(name: str, evolution: Evolution, given: int | None, density: float, seed: int, folder: str | None) -> dict:
    """Train one network on one core; its key, and the test accuracy after the last step, in percent.

    Args:
        name: of the training.
        given: as `steps=`.
        folder: of the data.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    source, steps = TRAININGS[name]
    data = datasets.load(source, folder)
    model = mlp([data.train_images.shape[1], 300, 100, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model, optimizer = sparsify(model, optimizer, density, evolution=evolution, steps=given, seed=seed)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    while done < steps:
        for batch in torch.randperm(len(data.train_images)).split(100)[: steps - done]:
            loss = F.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            done += 1
    return {"key": key(name, evolution, given, density, seed), "accuracy": test(model, data)}


def key(name: str, evolution: Evolution, given: int | None, density: float, seed: int) -> str:
    """What makes two runs the same."""
    return json.dumps([name, repr(evolution), given, density, seed])


def shown(accuracies: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"


def main() -> None:
    """Train everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=["digits-300"])
    parser.add_argument("--algorithms", nargs="+", choices=[kind.__name__ for kind in UNTIL], default=None)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, one core each")
    parser.add_argument("--data", metavar="FOLDER", help="with the IDX .gz files of MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()

    kinds = [kind for kind in UNTIL if options.algorithms is None or kind.__name__ in options.algorithms]
    wanted = {}
    for name in options.trainings:
        steps = TRAININGS[name][1]
        for kind in kinds:
            hand = dict.fromkeys(by_hand(kind, steps))
            wanted[name, kind] = [(default(kind, steps), None), (kind(), steps), *((each, None) for each in hand)]
    kept = sweep.Kept(options.out / "schedules.jsonl", "key")
    seeds = range(options.seeds)
    runs = {
        key(*of): (*of, options.data)
        for (name, _), variants in wanted.items()
        for variant in variants
        for of in [(name, *variant, options.density, seed) for seed in seeds]
    }
    sweep.run(run, [runs[own] for own in runs if own not in kept.results], kept, options.jobs)

    table = Table("training", "algorithm", "without", "steps=", "by hand, the best", "which is")
    for (name, kind), variants in wanted.items():
        without, by_steps, *others = [
            [kept.results[key(name, *variant, options.density, seed)]["accuracy"] for seed in seeds]
            for variant in variants
        ]
        best = max(range(len(others)), key=lambda number: statistics.mean(others[number]))
        which = repr(variants[2 + best][0])
        table.add_row(name, kind.__name__, shown(without), shown(by_steps), shown(others[best]), which)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
