"""Times sparse convolutions, and a training step of ResNet-18, beside PyTorch's dense ones.

python examples/benchmark.py --only convolutions
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import NamedTuple

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from sparsify import SparseConv2d, sparsify

Medians = Callable[[dict[str, Callable[[], object]], float], dict[str, float]]


class Case(NamedTuple):
    """A convolution: images, channels in and out, their size, the window, the stride, and what is asked.

    asked: times faster than dense at densities .10, .05 and .01, by the processor's vendor; none of a row without bars.
    """

    images: int
    ins: int
    outs: int
    size: int
    kernel: int
    stride: int = 1
    asked: Mapping[str, tuple[float, ...]] = MappingProxyType({})


WIDE = {"GenuineIntel": (2.5, 4.5, 10.0), "AuthenticAMD": (4.0, 8.0, 16.0)}
POINTWISE = {"GenuineIntel": (2.0, 3.5, 6.0), "AuthenticAMD": (3.0, 6.0, 12.0)}
CASES = (
    Case(32, 256, 256, 14, 3, asked=WIDE),
    Case(32, 128, 128, 28, 3, asked=WIDE),
    Case(16, 64, 64, 56, 3, asked=WIDE),
    Case(64, 512, 512, 7, 3, asked=WIDE),
    Case(32, 1024, 256, 14, 1, asked=POINTWISE),
    Case(32, 128, 256, 28, 3, 2),
    Case(32, 256, 512, 14, 1, 2),
)
DENSITIES = (0.1, 0.05, 0.01)


def _step(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward and backward through one layer, gradients of the input included."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        grad = torch.ones_like(layer(x))

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(grad)

    return run


def _forward(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def _dense(case: Case) -> nn.Conv2d:
    return nn.Conv2d(case.ins, case.outs, case.kernel, case.stride, case.kernel // 2)


def _rival(layer: SparseConv2d) -> nn.Module | None:
    """The same connections in SparseProp, where it is installed and can have them."""
    if not find_spec("sparseprop"):
        return None
    from sparseprop.modules import SparseConv2d as SparseProp

    return SparseProp.from_dense(layer.to_conv())


def layers(vendor: str, seconds: float, medians: Medians) -> Table:
    """Forward and backward of single layers, beside the better of both memory formats of PyTorch's."""
    names = ("images x in -> out, size, window, stride", "density", "dense ms", "sparse ms", "times faster", "asked")
    table = Table(*names, "SparseProp", title=f"convolutions, forward + backward, {torch.get_num_threads()} threads")
    for case in CASES:
        x = torch.randn(case.images, case.ins, case.size, case.size)
        last = x.contiguous(memory_format=torch.channels_last)
        for number, density in enumerate(DENSITIES):
            options = {"stride": case.stride, "padding": case.kernel // 2}
            sparse = SparseConv2d(case.ins, case.outs, case.kernel, density, **options)
            turned = _dense(case).to(memory_format=torch.channels_last)
            variants = {"dense": _step(_dense(case), x), "turned": _step(turned, last), "sparse": _step(sparse, x)}
            if (rival := _rival(sparse)) is not None:
                variants["rival"] = _step(rival, x)
            found = medians(variants, seconds)
            best = min(found["dense"], found["turned"])
            asked = case.asked.get(vendor, ())
            table.add_row(
                f"{case.images} x {case.ins} -> {case.outs}, {case.size}², {case.kernel} x {case.kernel}, "
                f"{case.stride}",
                f"{density:g}",
                f"{best:.1f}",
                f"{found['sparse']:.1f}",
                f"{best / found['sparse']:.2f}",
                f"{asked[number]:g}" if asked else "",
                f"{best / found['rival']:.2f}" if "rival" in found else "",
            )
    return table


def single_image(seconds: float, medians: Medians) -> Table:
    """One image, forward alone under no_grad, at density .1."""
    table = Table("in -> out, size, window", "dense ms", "sparse ms", "times faster", title="one image, inference")
    for case in CASES:
        x = torch.randn(1, case.ins, case.size, case.size)
        options = {"stride": case.stride, "padding": case.kernel // 2}
        sparse = SparseConv2d(case.ins, case.outs, case.kernel, 0.1, **options)
        last = x.contiguous(memory_format=torch.channels_last)
        turned = _dense(case).to(memory_format=torch.channels_last)
        variants = {"dense": _forward(_dense(case), x), "turned": _forward(turned, last), "sparse": _forward(sparse, x)}
        found = medians(variants, seconds)
        best = min(found["dense"], found["turned"])
        name = f"{case.ins} -> {case.outs}, {case.size}², {case.kernel} x {case.kernel}"
        table.add_row(name, f"{best:.2f}", f"{found['sparse']:.2f}", f"{best / found['sparse']:.2f}")
    return table


def resnet18() -> nn.Module:
    """ResNet-18 in its CIFAR form: a 3 x 3 window first, and no pooling after it."""

    class Block(nn.Module):
        def __init__(self, ins: int, outs: int, stride: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
            self.two = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(outs), nn.BatchNorm2d(outs)])
            short = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))
            self.short = short if stride > 1 or ins != outs else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = F.relu(self.norms[0](self.one(x)))
            return F.relu(self.norms[1](self.two(inner)) + self.short(x))

    widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
    blocks = [Block(*width) for width in (*widths, (512, 512, 1))]
    first = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _training(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, density: float | None) -> Callable[[], None]:
    """A step of SGD with momentum; None leaves the model dense."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if density is not None:
        model, optimizer = sparsify(model, optimizer, density, kinds=(nn.Linear, nn.Conv2d), steps=10_000)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


KINDS = {
    "sparse layers": ("_Product",),
    "batch norm": ("batch_norm", "BatchNorm"),
    "ReLU": ("clamp_min", "threshold_backward"),
    "layers left dense": ("convolution", "addmm"),
}
"""What of a step takes time, and what of it PyTorch's profiler calls."""


def where_it_goes(density: float = 0.05, images: int = 64) -> Table:
    """Shares of the time of a sparse training step of ResNet-18, by PyTorch's profiler."""
    run = _training(resnet18(), torch.randn(images, 3, 32, 32), torch.randint(10, (images,)), density)
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            run()
    times = {each.key: each.self_cpu_time_total for each in profiled.key_averages()}
    table = Table("part", "share", title=f"where a step of ResNet-18 at density {density:g} goes")
    for kind, words in KINDS.items():
        own = sum(ms for key, ms in times.items() if any(word in key for word in words))
        table.add_row(kind, f"{own / sum(times.values()):.0%}")
    return table


def whole_step(seconds: float, medians: Medians, images: int = 64) -> Table:
    """A training step of ResNet-18 on images of 32 x 32, SGD with momentum: dense in both formats, and sparse."""
    table = Table(
        "density",
        "dense ms",
        "sparse ms",
        "times faster",
        "asked",
        title=f"training step of ResNet-18, {images} images",
    )
    x, labels = torch.randn(images, 3, 32, 32), torch.randint(10, (images,))
    dense = resnet18()
    turned = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    for density in DENSITIES:
        variants = {
            "dense": _training(dense, x, labels, None),
            "turned": _training(turned, last, labels, None),
            "sparse": _training(resnet18(), x, labels, density),
        }
        found = medians(variants, seconds)
        best = min(found["dense"], found["turned"])
        faster = f"{best / found['sparse']:.2f}"
        table.add_row(f"{density:g}", f"{best:.0f}", f"{found['sparse']:.0f}", faster, "2" if density == 0.05 else "")
    return table


def tables(vendor: str, seconds: float, medians: Medians) -> list[Callable[[], Table]]:
    """All of them, each to be made when it is wanted."""
    return [
        partial(layers, vendor, seconds, medians),
        partial(single_image, seconds, medians),
        partial(whole_step, seconds, medians),
        where_it_goes,
    ]
