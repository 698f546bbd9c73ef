"""What becomes sparse of well-known convolutional networks: shares of parameters and of multiply-adds, and why not all.

python examples/networks.py                               # nothing is computed: models are on the meta device
python examples/networks.py --networks resnet18 vgg16_bn --density 0.05 --distribution uniform
python examples/networks.py --help
"""

import argparse
import math
import sys
from collections import defaultdict
from typing import NamedTuple

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sparsify import erdos_renyi, plan, uniform

NETWORKS = ["resnet18", "resnet50", "mobilenetv2_100", "efficientnet_b0", "convnext_tiny", "vgg16_bn"]
KINDS = (nn.Linear, nn.Conv2d)
DISTRIBUTIONS = {"erdos_renyi": erdos_renyi, "uniform": uniform}
REST = "norms, biases, vectors"


class Share(NamedTuple):
    """What some layers have of a network: parameters, and multiply-adds of one image."""

    parameters: int
    multiply_adds: int


class Network(NamedTuple):
    """A network, dense; what of it becomes sparse, what that has then, and what the rest has, by reason."""

    name: str
    whole: Share
    sparse: Share
    kept: Share
    rest: dict[str, Share]


def places(model: nn.Module, size: int) -> dict[str, int]:
    """How many places of its output each layer computes, for one image of size x size."""
    counts: dict[str, int] = {}

    def count(name: str, channels: int) -> None:
        def hook(_: nn.Module, inputs: object, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + output.numel() // channels

        model.get_submodule(name).register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            count(name, module.weight.shape[0])
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counts


def examine(name: str, options: argparse.Namespace) -> Network:
    """See what would become sparse."""
    with torch.device("meta"):
        model = timm.create_model(name)
    report = plan(model, options.density, kinds=KINDS, distribution=DISTRIBUTIONS[options.distribution])
    seen = places(model, options.size)
    dense = {row.name: math.prod(row.shape) for row in report.layers}
    rest: dict[str, Share] = defaultdict(lambda: Share(0, 0))
    for row in report.dense:
        reason = row.reason.partition(":")[0] if row.name in seen else REST
        rest[reason] = added(rest[reason], Share(dense[row.name], dense[row.name] * seen.get(row.name, 0)))
    sparse = added(*(Share(dense[row.name], dense[row.name] * seen.get(row.name, 0)) for row in report.sparse))
    kept = added(*(Share(row.nnz, row.nnz * seen.get(row.name, 0)) for row in report.sparse))
    vectors = sum(parameter.numel() for parameter in model.parameters()) - sum(dense.values())
    rest[REST] = added(rest[REST], Share(vectors, 0))
    return Network(name, added(sparse, *rest.values()), sparse, kept, dict(rest))


def added(*shares: Share) -> Share:
    """All of them together."""
    return Share(*map(sum, zip(*shares, strict=True)))


def percent(part: int, whole: int) -> str:
    """A share in words."""
    return f"{100 * part / whole:.1f} %"


def print_table(networks: list[Network], options: argparse.Namespace) -> None:
    """A row for each network, and below it one for each reason."""
    title = f"density {options.density:g} ({options.distribution}), one image of {options.size} x {options.size}"
    table = Table("", "parameters", "multiply-adds", title=title, title_justify="left")
    for heading in "share of parameters", "of multiply-adds", "parameters left", "multiply-adds left":
        table.add_column(heading)
    for column in table.columns[1:]:
        column.justify = "right"
    for network in networks:
        whole, sparse, kept = network.whole, network.sparse, network.kept
        table.add_section()
        table.add_row(network.name, f"{whole.parameters:,}", f"{whole.multiply_adds:,}")
        left = percent(kept.parameters, sparse.parameters), percent(kept.multiply_adds, sparse.multiply_adds)
        table.add_row("  becomes sparse", "", "", *map(percent, sparse, whole), *left)
        for reason, share in sorted(network.rest.items(), key=lambda item: -item[1].parameters):
            table.add_row(f"  {reason}", "", "", *map(percent, share, whole))
        after = added(kept, *network.rest.values())
        table.add_row("  all of it", "", "", "", "", *map(percent, after, whole))
    Console(width=140).print(table)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="What becomes sparse of well-known networks, and why not all of them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="of timm's models")
    parser.add_argument("--density", type=float, default=0.1, help="share of the connections kept, in (0, 1]")
    parser.add_argument("--distribution", choices=DISTRIBUTIONS, default="erdos_renyi", help="among the layers")
    parser.add_argument("--size", type=int, default=224, help="of the image whose multiply-adds are counted")
    return parser


def main() -> None:
    """Print the table."""
    options = parser().parse_args()
    unknown = [name for name in options.networks if not timm.is_model(name)]
    if unknown:
        sys.exit(f"networks.py: --networks must name models of timm's, got {', '.join(unknown)}")
    print_table([examine(name, options) for name in options.networks], options)


if __name__ == "__main__":
    main()
