"""Train a truly sparse GPT on text that every machine has: the sources of Python's standard library.

python examples/charlm.py                       # 10 % of the connections, evolving; then a sample
python examples/charlm.py --compare             # beside a dense GPT, and a narrow dense one of as many parameters
python examples/charlm.py --prompt "class Sparse" --temperature 0.5
python examples/charlm.py --help
"""

import argparse
import math
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from mnist import held_bytes
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sparsify import SET, GraNet, RigL, SparseLinear, Static, plan, sparsify

# Not of the library itself, or tables and prose.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
HELD_OUT = 20  # one file in so many is for validation
KINDS = 100  # of characters
UNKNOWN = "\ufffd"  # stands for all the rarer ones
EVOLUTIONS = {"static": Static, "SET": SET, "RigL": RigL, "GraNet": GraNet}


class Text(NamedTuple):
    """Source code as tokens: places in `characters`."""

    characters: str
    train: Tensor
    validation: Tensor
    files: int


class Result(NamedTuple):
    """One training run."""

    name: str
    model: nn.Module
    steps: list[int]  # of each validation
    bits: list[float]  # for each character then, on held-out files
    connections: int  # weights of the blocks
    parameters: int
    bytes: int  # weights, their indices and optimizer state
    seconds: float  # without validation


def read_text(megabytes: float) -> Text:
    """The standard library's modules in alphabetical order, as many as fit."""
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [path for path in root.rglob("*.py") if SKIPPED.isdisjoint(path.relative_to(root).parts)]
    sources, left = [], megabytes * 1e6
    for path in sorted(modules, key=lambda path: path.relative_to(root).as_posix()):
        left -= path.stat().st_size
        if left < 0:
            break
        sources.append(path.read_text(encoding="utf-8", errors="replace"))
    if len(sources) < 2:
        raise ValueError(f"{root} must hold two .py files or more within {megabytes:g} MB, got {len(sources)}.")
    train = "".join(source for index, source in enumerate(sources) if index % HELD_OUT)
    commonest = {character for character, _ in Counter(train).most_common(KINDS - 1)}
    characters = UNKNOWN + "".join(sorted(commonest - {UNKNOWN}))
    validation = "".join(sources[::HELD_OUT])
    return Text(characters, encode(train, characters), encode(validation, characters), len(sources))


def encode(text: str, characters: str) -> Tensor:
    """The place of each character in `characters`, (len(text),) int64; 0 for one that is not there."""
    place = torch.zeros(sys.maxunicode + 1, dtype=torch.int64)
    place[torch.tensor([ord(character) for character in characters])] = torch.arange(len(characters))
    return place[torch.frombuffer(bytearray(text, "utf-32-le", "replace"), dtype=torch.int32)]


class Block(nn.Module):
    """Causal attention, then a perceptron; each sees its input normalized and adds to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for last in self.projection, self.mlp[2]:  # so that a new block changes nothing
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, time, width) to the same shape."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A transformer with learned positions; the head is tied to the embedding, and so both stay dense."""

    def __init__(self, kinds: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.position = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, kinds, bias=False)
        self.head.weight = self.embedding.weight
        for parameter in self.embedding.weight, self.position:
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, time) to the logits of the next ones, (batch, time, kinds)."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def build(width: int, text: Text, options: argparse.Namespace) -> GPT:
    """A new GPT, dense."""
    return GPT(len(text.characters), width, options.layers, options.heads, options.context)


def train(variant: str, width: int, text: Text, options: argparse.Namespace) -> Result:
    """Train one GPT: "dense", or sparse with one of `EVOLUTIONS`."""
    torch.manual_seed(options.seed)
    model = build(width, text, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.1)

    if variant != "dense":
        print(f"\n{plan(model, options.density, optimizer=optimizer)}")
        evolution = EVOLUTIONS[variant]()
        model, optimizer = sparsify(
            model, optimizer, options.density, steps=options.steps, evolution=evolution, seed=options.seed
        )

    name = f"dense, width {width}" if variant == "dense" else f"sparse ({variant}), width {width}"
    warmup = max(1, options.steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, warmup, options.steps))
    print(f"\n{name}: {count(model)[1]:,} parameters")
    every = max(1, options.steps // options.validations)
    steps, bits, recent, seconds = [], [], [], 0.0
    progress = tqdm(batches(text.train, options), total=options.steps, unit="step", leave=False, disable=options.quiet)
    for step, (inputs, targets) in enumerate(progress, 1):
        start = time.perf_counter()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        seconds += time.perf_counter() - start
        recent.append(loss.item() / math.log(2))
        if step % every == 0 or step == options.steps:
            steps.append(step)
            bits.append(validate(model, text.validation, options))
            said = sample(model, text, options.prompt, 50, options.temperature, options.seed)
            line = (options.prompt + said).replace("\n", "↵")
            progress.write(f"step {step:5}  train {fmean(recent):.3f}  validation {bits[-1]:.3f}  {line}")
            recent.clear()
    return Result(name, model, steps, bits, *count(model), held_bytes(model, optimizer), seconds)


def rate(step: int, warmup: int, steps: int) -> float:
    """Share of the learning rate: up a line, then down a cosine to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def batches(tokens: Tensor, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows and the same a character later, each (batch, context); the same ones for every variant."""
    generator = torch.Generator().manual_seed(options.seed)
    windows = tokens.unfold(0, options.context + 1, 1)
    for _ in range(options.steps):
        chosen = windows[torch.randint(len(windows), (options.batch_size,), generator=generator)]
        yield chosen[:, :-1], chosen[:, 1:]


@torch.no_grad()
def validate(model: nn.Module, tokens: Tensor, options: argparse.Namespace) -> float:
    """Bits for each character, over windows spread evenly over held-out files."""
    windows = tokens.unfold(0, options.context + 1, 1)
    chosen = windows[torch.linspace(0, len(windows) - 1, options.windows).long()]
    nats = 0.0
    for part in chosen.split(options.batch_size):
        logits = model(part[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return nats / chosen[:, 1:].numel() / math.log(2)


def bits_of_frequencies(text: Text) -> float:
    """Bits for each held-out character where only the characters' frequencies are known."""
    counts = torch.bincount(text.train, minlength=len(text.characters)) + 1
    return -(counts / counts.sum()).log2()[text.validation].mean().item()


@torch.no_grad()
def sample(model: GPT, text: Text, prompt: str, length: int, temperature: float, seed: int) -> str:
    """Draw so many characters after `prompt`, one by one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = encode(prompt or "\n", text.characters).tolist()
    for _ in range(length):
        logits = model(torch.tensor([tokens[-len(model.position) :]]))[0, -1] / temperature
        logits[0] = -math.inf  # UNKNOWN
        tokens.append(torch.multinomial(logits.softmax(0), 1, generator=generator).item())
    return "".join(text.characters[token] for token in tokens[-length:])


def count(model: nn.Module) -> tuple[int, int]:
    """Weights of the blocks' linear layers, and all parameters."""
    linear = [module for module in model.blocks.modules() if isinstance(module, (nn.Linear, SparseLinear))]
    connections = sum(m.nnz if isinstance(m, SparseLinear) else m.weight.numel() for m in linear)
    return connections, sum(parameter.numel() for parameter in model.parameters())


def narrow(parameters: int, text: Text, options: argparse.Namespace) -> int:
    """The width at which a dense GPT has the most nearly so many parameters."""

    def difference(width: int) -> int:
        with torch.device("meta"):
            return abs(count(build(width, text, options))[1] - parameters)

    return min(range(options.heads, options.width + 1, options.heads), key=difference)


def print_table(results: list[Result], frequencies: float) -> None:
    """The models side by side."""
    table = Table("", "bits per character", "connections", "parameters", "weights + optimizer", "training", "a step")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("frequencies alone", f"{frequencies:.3f}")
    for r in results:
        counts = f"{r.connections:,}", f"{r.parameters:,}"
        times = f"{r.seconds:.0f} s", f"{1000 * r.seconds / r.steps[-1]:.0f} ms"
        table.add_row(r.name, f"{r.bits[-1]:.3f}", *counts, f"{r.bytes / 2**20:.1f} MiB", *times)
    Console(width=120).print(table)


def plot(results: list[Result], path: Path, title: str) -> None:
    """Validation bits per character over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for r in sorted(results, key=lambda r: -r.bits[-1]):  # the legend in the order of the lines
        label = f"{r.name}: {r.bits[-1]:.2f}, {r.parameters / 1e6:.2f} million parameters"
        axes.plot(r.steps, r.bits, marker="o", markersize=3, linewidth=1.8, label=label)
    highest = max(r.bits[len(r.bits) // 20] for r in results)
    axes.set(title=title, xlabel="step", ylabel="bits per character of held-out files", ylim=(None, highest + 0.1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train a truly sparse GPT on the sources of Python's standard library.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--density", type=float, default=0.1, help="share of the connections kept, in (0, 1]")
    parser.add_argument("--evolution", choices=EVOLUTIONS, default="SET", help="how the topology evolves")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="windows of text in a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate, after warm-up")
    parser.add_argument("--width", type=int, default=256, help="a multiple of --heads")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128, help="characters that the model sees")
    parser.add_argument("--megabytes", type=float, default=8, help="of source code, at most")
    parser.add_argument("--validations", type=int, default=20, help="in the course of training")
    parser.add_argument("--windows", type=int, default=256, help="of held-out text at each validation")
    parser.add_argument("--prompt", default="def ", help="what the sample goes on from")
    parser.add_argument("--length", type=int, default=400, help="of the sample, in characters")
    parser.add_argument("--temperature", type=float, default=0.6, help="below 1: likelier characters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compare", action="store_true", help="train a dense and a narrow dense GPT beside it")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="where the picture is saved")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def check(options: argparse.Namespace) -> None:
    """Raise where a network or a sample of these options cannot be."""
    if options.width % options.heads:
        raise ValueError(f"--width must be a multiple of --heads, got {options.width} and {options.heads}.")
    if options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}.")
    if options.temperature <= 0:
        raise ValueError(f"--temperature must be above 0, got {options.temperature:g}.")


def main() -> None:
    """Train, print a sample and a table, save a picture."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        check(options)
        text = read_text(options.megabytes)
    except ValueError as error:
        sys.exit(f"charlm.py: {error}")
    print(f"{text.files} modules: {len(text.train):,} characters for training, {len(text.validation):,} held out")
    sparse = train(options.evolution, options.width, text, options)
    said = sample(sparse.model, text, options.prompt, options.length, options.temperature, options.seed)
    console = Console(width=120)
    console.print()
    console.rule(f"{sparse.name}, temperature {options.temperature:g}")
    console.print(
        Syntax(options.prompt + said, "python", theme="ansi_dark", background_color="default", word_wrap=True)
    )
    console.rule()
    results = [sparse]
    if options.compare:
        widths = options.width, narrow(sparse.parameters, text, options)
        results = [*(train("dense", width, text, options) for width in widths), sparse]
    print_table(results, bits_of_frequencies(text))
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "charlm.png"
    plot(results, picture, f"GPT of {options.layers} layers on Python's standard library, density {options.density:g}")
    print(f"saved {picture}")


if __name__ == "__main__":
    main()
