"""Train one sparse network in several processes: DistributedDataParallel, and one line of sparsify.

    torchrun --standalone --nproc-per-node 2 examples/ddp.py --data FOLDER
    torchrun --standalone --nproc-per-node 2 examples/ddp.py --checkpoint ddp.pt    # resumes where it was stopped

With a checkpoint and torchrun's --max-restarts 3, it goes on after a process has died. (PyTorch issue 135712: restarts
need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment.)
"""

import argparse
import copy
import gc
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from mnist import mlp, test
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from sparsify import SET, RigL, SparseLinear, sparsify
from sparsify._src.vectors import fingerprint


def train(data: datasets.Dataset, options: argparse.Namespace) -> None:
    """Train on this rank's share of the data; rank 0 prints and saves."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)  # any: rank 0's network is everyone's
    model = mlp([data.train_images.shape[1], 300, 100, 10])
    dense_bytes = gradient_bytes(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    sampler = DistributedSampler(range(len(data.train_images)))
    steps = -(-len(sampler) // options.batch_size) * options.epochs
    kind = RigL if options.algorithm == "RigL" else SET
    evolution = kind(interval=options.interval or "auto")

    model, optimizer = sparsify(model, optimizer, options.density, steps=steps, evolution=evolution)

    sparse_bytes = gradient_bytes(model, data)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    begin = load(options.checkpoint, parts)
    replica = DistributedDataParallel(model)
    if rank == 0:
        print(f"{data.name} on {ranks} ranks, {options.algorithm}, density {options.density:g}")
        print(f"gradients of a step: {sparse_bytes:,} bytes; dense: {dense_bytes:,} bytes")
        print(f"{'epoch':>5}  {'test':>7}  {'bytes on the wire a step':>24}  topology of each rank")
    for epoch in range(begin, options.epochs):
        before = loopback_bytes()
        sampler.set_epoch(epoch)
        batches = torch.tensor(list(sampler)).split(options.batch_size)
        for batch in batches:
            loss = F.cross_entropy(replica(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        wire = (loopback_bytes() - before) // len(batches)
        topologies: list[str] = [""] * ranks
        dist.all_gather_object(topologies, topology(model))
        if rank == 0:
            print(f"{epoch + 1:>5}  {test(model, data):>5.2f} %  {wire:>24,}  {'  '.join(topologies)}", flush=True)
            save(options.checkpoint, parts, epoch + 1)


def gradient_bytes(model: nn.Module, data: datasets.Dataset) -> int:
    """What DistributedDataParallel sends of one backward pass."""
    sent = []

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        sent.append(bucket.buffer().nbytes)
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    replica = DistributedDataParallel(copy.deepcopy(model))
    replica.register_comm_hook(None, hook)
    replica(data.train_images[:2]).sum().backward()
    return sum(sent)


def topology(model: nn.Module) -> str:
    """A hash of all connections, 8 hexadecimal digits."""
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    return fingerprint(torch.cat([layer.crow for layer in layers]), torch.cat([layer.col for layer in layers]))[:8]


def loopback_bytes() -> int:
    """Bytes that went through this machine's loopback interface, of all programs; 0 where the system does not say."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def save(path: Path | None, parts: dict[str, Any], epoch: int) -> None:
    """Save a checkpoint, whole or not at all."""
    if path is not None:
        partial = path.with_suffix(".partial")
        torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, partial)
        partial.replace(path)


def load(path: Path | None, parts: dict[str, Any]) -> int:
    """Load a checkpoint on every rank, if there is one; the epochs done."""
    if path is None or not path.exists():
        return 0
    checkpoint = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(checkpoint[name])
    return int(checkpoint["epoch"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a sparse network in several processes: run it by torchrun.")
    parser.add_argument("--density", type=float, default=0.1, help="share of the connections kept, in (0, 1]")
    parser.add_argument("--algorithm", choices=["RigL", "SET"], default="RigL", help="how the topology evolves")
    parser.add_argument("--interval", type=int, help="optimizer steps between evolutions; default: 20 or more in all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=50, help="of each rank")
    parser.add_argument("--data", metavar="FOLDER", help="with the IDX .gz files; default: $SPARSIFY_DATA, or download")
    parser.add_argument("--dataset", choices=["mnist", "fashion", "digits"], default="mnist")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="saved after each epoch, and resumed from")
    return parser


if __name__ == "__main__":
    options = parser().parse_args()
    dist.init_process_group("gloo")
    train(datasets.load(options.dataset, options.data), options)
    gc.collect()  # a wrapped model that outlives its group can abort the process at exit (PyTorch issue 190489)
    dist.destroy_process_group()
