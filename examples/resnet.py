"""Train a truly sparse ResNet on Fashion-MNIST: convolutions that hold their connections only, in a plain loop.

python examples/resnet.py                       # 10 % of the connections, which grow where gradients are largest
python examples/resnet.py --compare             # beside the same network, dense
python examples/resnet.py --dataset cifar10 --data FOLDER --width 64 --epochs 30
python examples/resnet.py --help
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from matplotlib.figure import Figure
from mnist import held_bytes, print_table
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sparsify import SET, GraNet, RigL, SparseConv2d, Static, plot, sparsify, summary

EVOLUTIONS = {"static": Static, "SET": SET, "RigL": RigL, "GraNet": GraNet}
MIRRORED = {"fashion", "cifar10"}  # a digit in a mirror is none
SHOWN = 3  # layers in the picture


class Result(NamedTuple):
    """One training run."""

    variant: str
    accuracies: list[float]  # test accuracy after each epoch, in percent
    parameters: int
    bytes: int  # weights, their indices and optimizer state
    seconds: float  # an epoch, without testing
    before: dict[str, Tensor]  # layer -> of each input channel, the share of its places that are connections
    after: dict[str, Tensor]


class Block(nn.Module):
    """Two convolutions, whose result is added to the input; that is projected where its shape is another."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


def resnet(colours: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Three stages of `width`, 2 * `width` and 4 * `width` channels: 6 * `blocks` + 2 layers deep.

    Args:
        blocks: of each stage.
        stride: of the first convolution: 2 takes a quarter of the time of 1.
    """
    layers = [nn.Conv2d(colours, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(Block(inputs, width << stage, 2 if stage and not block else 1))
            inputs = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def train(variant: str, data: datasets.Dataset, options: argparse.Namespace) -> Result:
    """Train one network: "dense", or sparse with one of `EVOLUTIONS`."""
    torch.manual_seed(options.seed)
    train_images, test_images = images_of(data)
    model = resnet(train_images.shape[1], options.width, options.blocks, options.stride)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    an_epoch = -(-len(train_images) // options.batch_size)
    steps = options.steps or options.epochs * an_epoch

    if variant != "dense":
        model, optimizer = sparsify(
            model,
            optimizer,
            options.density,
            steps=steps,
            evolution=EVOLUTIONS[variant](),
            kinds=(nn.Linear, nn.Conv2d),
            seed=options.seed,
        )

    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, steps, pct_start=0.2)
    before, accuracies, seconds, done = shares_of_channels(model), [], 0.0, 0
    draw = torch.Generator().manual_seed(options.seed)  # the same batches for every variant
    progress = tqdm(total=steps, desc=f"{variant:>6}", unit="step", disable=options.quiet)
    while done < steps:
        start = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(train_images), generator=draw).split(options.batch_size)[: steps - done]:
            images = train_images[batch]
            if data.name in MIRRORED:
                turned = torch.rand(len(batch), 1, 1, 1, generator=draw) < 0.5
                images = torch.where(turned, images.flip(3), images)
            loss = F.cross_entropy(model(images), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            done += 1
            progress.update()
        seconds += time.perf_counter() - start
        accuracies.append(test(model, test_images, data.test_labels))
        progress.set_postfix(loss=f"{loss.item():.3f}", test=f"{accuracies[-1]:.2f} %")
    progress.close()
    if variant != "dense" and not options.quiet:
        print(summary(model))
    parameters = sum(p.numel() for p in model.parameters())
    held, after = held_bytes(model, optimizer), shares_of_channels(model)
    return Result(variant, accuracies, parameters, held, seconds * an_epoch / steps, before, after)


def images_of(data: datasets.Dataset) -> tuple[Tensor, Tensor]:
    """Images for training and for testing, (n, colours, side, side)."""
    train, test = (images.unflatten(1, (-1, data.side, data.side)) for images in (data.train_images, data.test_images))
    return train, test


@torch.no_grad()
def test(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Test accuracy in percent."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum() for x, y in zip(images.split(1000), labels.split(1000), strict=True))
    return 100 * int(right) / len(labels)


def shares_of_channels(model: nn.Module) -> dict[str, Tensor]:
    """Of each input channel of each sparse convolution: the share of its places that are connections."""
    shares = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseConv2d) and layer.kernel_size != (1, 1):
            shares[name] = plot.input_counts(layer).float().mean((1, 2)) / layer.out_channels
    return shares


def save_picture(results: list[Result], path: Path, title: str) -> None:
    """Accuracy over epochs, and what evolution did to input channels: at random all have about as many connections."""
    before, after = results[-1].before, results[-1].after
    names = list(after)
    shown = [names[place * (len(names) - 1) // (SHOWN - 1)] for place in range(SHOWN)] if len(names) >= SHOWN else names
    figure = Figure(figsize=(4.2 + 3 * len(shown), 3.9), layout="constrained")
    accuracy, *others = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    curves = {f"{r.variant}: {r.accuracies[-1]:.2f} %,\n{r.parameters:,} parameters": r.accuracies for r in results}
    plot.epochs(curves, axes=accuracy).set(title="test accuracy", ylabel="test accuracy (%)")
    for axis, name in zip(others, shown, strict=True):
        for label, style, shares in ("before", "0.6", before[name]), ("after", "k", after[name]):
            ranks = range(1, len(shares) + 1)
            axis.plot(ranks, 100 * shares.sort(descending=True).values, color=style, label=label)
        axis.set(title=f"layer {name}: {len(after[name])} input channels", ylim=(0, None))
        axis.set_xlabel("channel, from the fullest to the emptiest")
        axis.legend(loc="upper right", frameon=False)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if others:
        others[0].set_ylabel("connections (% of the channel's places)")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def evolution(name: str) -> str:
    """A name of `EVOLUTIONS`, however it is written."""
    return {each.lower(): each for each in EVOLUTIONS}.get(name.lower(), name)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train a truly sparse ResNet on Fashion-MNIST.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--density", type=float, default=0.1, help="share of the connections kept, in (0, 1]")
    parser.add_argument("--evolution", type=evolution, choices=EVOLUTIONS, default="RigL", help="of the topology")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2, help="the highest learning rate: it rises, then falls")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage, then 2 and 4 times that")
    parser.add_argument("--blocks", type=int, default=1, help="of each of the three stages: 1 is ResNet-8, 2 ResNet-14")
    parser.add_argument("--stride", type=int, default=2, help="of the first convolution; 1 takes four times as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", metavar="FOLDER", help="with the IDX .gz files; default: $SPARSIFY_DATA, or download")
    parser.add_argument("--dataset", choices=["fashion", "mnist", "cifar10", "digits"], default="fashion")
    parser.add_argument("--compare", action="store_true", help="train the same network dense beside it")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where the picture is saved")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main() -> None:
    """Train, print a table, save a picture."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        data = datasets.load(options.dataset, options.data)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"resnet.py: {error}")
    results = [train(variant, data, options) for variant in [*["dense"] * options.compare, options.evolution]]
    print_table(results)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{data.name}-resnet.png"
    depth, widths = 6 * options.blocks + 2, "-".join(str(options.width << stage) for stage in range(3))
    save_picture(results, path, f"{data.name}, ResNet-{depth} of {widths} channels, density {options.density:g}")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
