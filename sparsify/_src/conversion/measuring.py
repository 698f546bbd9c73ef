"""Measures layers on this machine, sparse beside dense, as a training or an inference loop would run them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsify._src import progress_bar
from sparsify._src.conversion.figures import BATCHES, DENSITIES, GRID, SIZES, Grid, Pair
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.dispatch import best, use
from sparsify._src.layers.convolution import SparseConv, SparseConv1d, SparseConv2d, SparseConv3d
from sparsify._src.layers.linear import SparseLinear


class Runs(NamedTuple):
    """What a timer found."""

    times: dict[str, list[float]]  # milliseconds of every run of each variant
    share: float  # of the time in which this thread had a core


Timer = Callable[[Mapping[str, Callable[[], object]], float], Runs]
"""Times variants, given about so many seconds for all."""

LARGEST = 2**25
"""Weights of a dense layer above which none is measured: it would take 128 MiB, and as much for its gradient."""

MOST_ELEMENTS = 2**26
"""Numbers that go in and out of a convolution, above which it is not measured: gradients take as much again."""

CONVOLUTIONS: tuple[type[SparseConv], ...] = (SparseConv1d, SparseConv2d, SparseConv3d)

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The other memory format of a batch, by its dimensions."""

SHARE = 0.85
"""Of its time this thread must have a core. On a quiet machine of two cores it was 0.99 and more, beside a process that
keeps one of them busy 0.4 to 0.7: threads then wait for one another, and times say nothing."""


TRIES = 5
"""How often variants are run again before that is found."""


class Unsteady(Exception):
    """Something else uses the processor."""


def in_turn(
    variants: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    own_clock: Callable[[], float] = time.thread_time,
) -> Runs:
    """Run blocks of each variant in turn, at least twice; the first run of a block finds the others' numbers in the
    caches, and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    start, own, rounds = clock(), own_clock(), 0
    while rounds < 2 or clock() - start < seconds:
        for name, run in variants.items():
            begun, runs = clock(), -1
            while runs < 1 or (runs < 8 and clock() - begun < seconds / 6 / len(variants)):
                before = clock()
                run()
                runs += 1
                if runs:
                    times[name].append((clock() - before) * 1e3)
        rounds += 1
    return Runs(times, (own_clock() - own) / max(clock() - start, 1e-9))


def grid(sizes: Sequence[int], seconds: float = 0.003, timer: Timer = in_turn) -> Grid:
    """Times of square layers of these sizes; NaN of others, and of what would take too long.

    Args:
        seconds: for each of them at each batch; no less than a few runs.
    Raises:
        Unsteady: something else uses the processor.
    """
    found = np.full(GRID, np.nan)
    with _undisturbed(), progress_bar.shown("measuring this machine", len(sizes), " sizes") as advance:
        for size in sizes:
            layers = _layers((size, size), [max(1, round(density * size * size)) for density in DENSITIES])
            for k, batch in enumerate(BATCHES):
                for training in (False, True):
                    if size * batch <= 2**19 or seconds >= 0.01:
                        runs = _steadily(timer, _variants(layers, batch, training), seconds)
                        found[int(training), SIZES.index(size), k] = [_typical(own) for own in runs.values()]
            advance(1)
    return found


def is_small(place: Place) -> bool:
    """Whether a layer is measured there."""
    return prod(place.shape) <= LARGEST and (place.window is None or place.elements <= MOST_ELEMENTS)


def layer(place: Place, *counts: int, seconds: float = 0.2, timer: Timer = in_turn) -> Pair:
    """Times of one layer, dense (of a convolution in the better of both memory formats) and with so many connections.

    Raises:
        Unsteady: something else uses the processor.
    """
    with _undisturbed():
        runs = _steadily(timer, variants_at(place, counts), seconds)
    times = [_typical(own) for own in runs.values()]
    dense, sparse = times[: -len(counts)], times[-len(counts) :]
    return Pair(min(dense), dict(zip(counts, sparse, strict=True)))


def _steadily(timer: Timer, variants: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """The times of variants, again where something came between."""
    for _ in range(TRIES):
        runs = timer(variants, seconds)
        if runs.share >= SHARE:
            return runs.times
    raise Unsteady(f"it had a core for {runs.share:.0%} of the time only")


def _typical(times: list[float]) -> float:
    """The lower quartile: of an even load as good as the median, and less hurt by what comes between."""
    return float(np.quantile(times, 0.25))


def _layers(shape: tuple[int, int], counts: Sequence[int]) -> dict[str, nn.Module]:
    """A dense layer, and one with so many connections for each count. Their numbers do not matter."""
    dense = nn.Linear(shape[1], shape[0], device="meta", dtype=torch.float32).to_empty(device="cpu")
    for parameter in dense.parameters():
        nn.init.constant_(parameter, 0.01)
    generator = torch.Generator("cpu").manual_seed(0)
    found: dict[str, nn.Module] = {"dense": dense}
    with torch.device("cpu"):  # not around what is timed: it makes every call of PyTorch's slower
        for nnz in counts:
            density = nnz / (shape[0] * shape[1])
            found[str(nnz)] = SparseLinear(shape[1], shape[0], density, generator=generator, dtype=torch.float32)
    return found


def variants_at(place: Place, counts: Sequence[int]) -> dict[str, Callable[[], object]]:
    """What a loop does with a layer there: dense, of a convolution also in the other memory format, and sparse."""
    if place.window is None:
        return _variants(_layers(place.shape, counts), place.batch, place.training)
    window, kind = place.window, CONVOLUTIONS[len(place.size) - 1]
    channels, outs = window.in_channels(place.in_features), place.out_features
    made: Any = {"in_channels": channels, "out_channels": outs, **window._asdict(), "dtype": torch.float32}
    generator, found = torch.Generator("cpu").manual_seed(0), {}
    with torch.device("cpu"):
        x = torch.full((place.batch, channels, *place.size), 0.5, dtype=torch.float32)
        grad = torch.full((place.batch, outs, *window.out_size(place.size)), 0.5, dtype=torch.float32)
        dense = kind._kind(**made)
        found["dense"] = _run(dense, x, grad, place.training)
        if (other := FORMATS.get(x.dim())) is not None:
            dense = kind._kind(**made).to(memory_format=other)  # type: ignore[call-overload]
            turned, grads = x.contiguous(memory_format=other), grad.contiguous(memory_format=other)
            found["dense, channels last"] = _run(dense, turned, grads, place.training)
        for nnz in counts:
            sparse = kind(**made, density=nnz / prod(place.shape), generator=generator)
            found[str(nnz)] = _run(sparse, x, grad, place.training)
    return found


def _variants(layers: Mapping[str, nn.Module], batch: int, training: bool) -> dict[str, Callable[[], object]]:
    """What a loop does with each linear layer."""
    first: nn.Linear = layers["dense"]  # type: ignore[assignment]
    x = torch.full((batch, first.in_features), 0.5, device="cpu", dtype=torch.float32)
    grad = torch.full((batch, first.out_features), 0.5, device="cpu", dtype=torch.float32)
    return {name: _run(layer, x, grad, training) for name, layer in layers.items()}


def _run(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor, training: bool) -> Callable[[], object]:
    """What a loop does with a layer: forward and backward, or forward alone."""
    leaf = x.detach().requires_grad_()  # of the same numbers

    def train() -> None:
        leaf.grad = None
        layer.zero_grad()
        layer(leaf).backward(grad)

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    return train if training else infer


@contextmanager
def _undisturbed() -> Iterator[None]:
    """PyTorch as in a training loop that has begun, and in the caller's modes again afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(use(best()))
        for run in _variants(_layers((256, 256), [6000]), 32, True).values():
            run()  # starts PyTorch's threads
        yield
