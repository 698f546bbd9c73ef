"""Train a network of over a million neurons on an ordinary machine: its dense form would need terabytes.

    python examples/million_neurons.py
    python examples/million_neurons.py --hidden 500000 500000 --epsilon 5

By default the largest network of the SET authors: 1,803,317 neurons, on data of the shape of theirs (203 samples of
3312 features, 5 classes), which is made here: classes are clusters in 20 of the features, the rest is noise.
"""

import argparse
import resource
import sys
import time
from itertools import pairwise

import torch
from sklearn.datasets import make_classification
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sparsify import SET, SparseLinear, epsilon, sparsify, summary


def make_data(samples: int, features: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples and labels, for training and for testing."""
    inputs, labels = make_classification(
        2 * samples,
        features,
        n_informative=20,
        n_redundant=0,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=4.0,
        random_state=0,
    )
    inputs, labels = torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels)
    return inputs[:samples], labels[:samples], inputs[samples:], labels[samples:]


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int) -> float:
    """In percent."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches(inputs, labels, batch_size))
    model.train()
    return 100 * right / len(labels)


def batches(inputs: Tensor, labels: Tensor, size: int) -> zip:
    """Of `size` samples, in order."""
    return zip(inputs.split(size), labels.split(size), strict=True)


def peak_memory() -> float:
    """Most memory that this process ever held, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Make data, build the network without ever making it dense, train, and say what it took."""
    parser = argparse.ArgumentParser(
        description="Train a network of over a million neurons.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hidden", type=int, nargs="+", default=[900_000, 900_000], metavar="UNITS")
    parser.add_argument("--epsilon", type=float, default=20, help="connections for each unit on either side of a layer")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=29)
    parser.add_argument("--lr", type=float, default=1e-4, help="the wider the network, the smaller it must be")
    parser.add_argument("--samples", type=int, default=203)
    parser.add_argument("--features", type=int, default=3312)
    parser.add_argument("--classes", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    train_inputs, train_labels, test_inputs, test_labels = make_data(options.samples, options.features, options.classes)
    sizes = [options.features, *options.hidden, options.classes]
    neurons = sum(sizes)
    print(f"a network of {' - '.join(f'{size:,}' for size in sizes)}: {neurons:,} neurons")

    start = time.perf_counter()
    with torch.device("meta"):  # nothing is allocated here
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=2e-4)
    steps = -(-options.samples // options.batch_size)
    evolution = SET(interval=steps, until=steps * (options.epochs - 1))  # once an epoch, as in the paper
    model, optimizer = sparsify(model, optimizer, epsilon(options.epsilon), evolution=evolution)
    print(f"made in {time.perf_counter() - start:.1f} s\n{summary(model)}\n")

    epochs = []
    with tqdm(total=options.epochs * steps, unit="step") as progress:
        for epoch in range(1, options.epochs + 1):
            start = time.perf_counter()
            order = torch.randperm(options.samples)
            for inputs, labels in batches(train_inputs[order], train_labels[order], options.batch_size):
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}")
            epochs.append(time.perf_counter() - start)
            test = accuracy(model, test_inputs, test_labels, options.batch_size)
            progress.write(f"epoch {epoch}: {epochs[-1]:.1f} s, loss {loss.item():.3f}, test accuracy {test:.1f} %")

    connections = sum(layer.nnz for layer in model if isinstance(layer, SparseLinear))
    places = sum(inputs * outputs for inputs, outputs in pairwise(sizes))
    epoch = sorted(epochs)[len(epochs) // 2]
    print(
        f"\nneurons        {neurons:,}"
        f"\nconnections    {connections:,} in sparse layers"
        f"\npeak memory    {peak_memory():.2f} GiB, all of the process"
        f"\na step         {epoch / steps:.2f} s of {options.batch_size} samples"
        f"\nan epoch       {epoch:.1f} s of {options.samples} samples, with its evolution (median of {options.epochs})"
        f"\nif dense       {places:,} weights: {places * 4 / 2**40:.1f} TiB, "
        f"{places * 12 / 2**40:.1f} TiB with gradient and momentum"
    )


if __name__ == "__main__":
    main()
