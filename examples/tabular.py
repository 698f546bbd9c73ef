"""Train an MLP on a table of numbers, dense and truly sparse, in a plain loop.

python examples/tabular.py                     # breast cancer: 569 patients, 30 numbers each, two classes
python examples/tabular.py --density 0.05
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify import Report, sparsify, summary


def load() -> list[Tensor]:
    """Numbers to learn from, numbers to test on, their labels."""
    parts = train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(parts[0])
    numbers = [torch.tensor(scaler.transform(part), dtype=torch.float32) for part in parts[:2]]
    return [*numbers, *map(torch.tensor, parts[2:])]


def train(density: float, steps: int) -> tuple[float, Report]:
    """Train one network; density 1 is dense. Returns its accuracy on the test set and what it takes."""
    torch.manual_seed(0)
    train_x, test_x, train_y, test_y = load()
    model = nn.Sequential(nn.Linear(30, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    if density < 1:
        model, optimizer = sparsify(model, optimizer, density, steps=steps)

    for _ in range(steps):
        batch = torch.randint(len(train_x), (64,))
        loss = F.cross_entropy(model(train_x[batch]), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    return accuracy, summary(model, optimizer)


def main() -> None:
    """Train both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.1, help="share of the weights kept; default: 0.1")
    parser.add_argument("--steps", type=int, default=400, help="of the optimizer; default: 400")
    options = parser.parse_args()

    print("        density  accuracy  weights      bytes  in training")
    for name, density in ("dense", 1.0), ("sparse", options.density):
        accuracy, report = train(density, options.steps)
        net = report.totals[-1]  # the whole model
        print(f"{name:6} {net.density:8.3f} {accuracy:9.1%} {net.nnz:8,} {net.bytes:10,} {net.training_bytes:12,}")


if __name__ == "__main__":
    main()
