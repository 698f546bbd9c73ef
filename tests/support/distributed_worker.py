"""What test_distributed.py has two processes do: `torchrun -m tests.support.distributed_worker <what> <folder>`.

Each check gives what its test looks at; the test sees it from both ranks.
"""

import copy
import gc
import os
import pickle
import signal
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from sparsify import GMP, SET, Evolution, RigL, SparseLinear, coin, sparsify
from sparsify._src.conversion.linear_maps import KINDS
from sparsify.evolution import across_layers, by_gradient_among, mixed, per_layer, saliency, uniformly
from tests.support.convolutions import images
from tests.support.convolutions import network as image_network

SIZES = 12, 20, 16, 4
ALGORITHMS = {
    "SET": SET(interval=2),
    "RigL": RigL(interval=2),
    "RigL among": RigL(interval=2, grow=mixed(by_gradient_among(4), uniformly, share=0.5)),
    "saliency": Evolution(interval=2, drop=saliency, scope=per_layer),
}
WRAPPINGS = {
    "plain": {},
    "view": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True, "gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
}


def network(weights, sizes=SIZES, dtype=torch.float64):
    torch.manual_seed(weights)
    layers = [part for shape in pairwise(sizes) for part in (nn.Linear(*shape, dtype=dtype), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def prepare(weights, evolution, *, optimizer=lambda p: AdamW(p, 0.01), **options):
    model = network(weights)
    return sparsify(model, optimizer(model.parameters()), 0.3, evolution=evolution, **options)


def batch(*key, size=8):
    generator = torch.Generator().manual_seed(hash(key) % 2**31)
    inputs = torch.randn(size, SIZES[0], generator=generator, dtype=torch.float64)
    return inputs, torch.randint(SIZES[-1], (size,), generator=generator)


def train(model, optimizer, batches):
    for inputs, labels in batches:
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def own_batches(count, start=0):
    return [batch(dist.get_rank(), step) for step in range(start, start + count)]


def outcome(model, optimizer):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def halves(rank, ranks, algorithm):
    """Train on this rank's part of the batches, with two micro-batches a step."""
    model, optimizer = prepare(3, ALGORITHMS[algorithm])
    replica = DistributedDataParallel(model) if ranks > 1 else model
    for step in range(20):
        optimizer.zero_grad()
        for half in range(2):
            part = slice(rank * 8, (rank + 1) * 8) if ranks > 1 else slice(None)
            inputs, labels = (whole[part] for whole in batch(step, half, size=16))
            with replica.no_sync() if ranks > 1 and half == 0 else nullcontext():
                (cross_entropy(replica(inputs), labels) / 2).backward()
        optimizer.step()
    return outcome(model, optimizer)


def seeds_and_data_differ(rank):
    found = {}
    for algorithm, evolution in ALGORITHMS.items():
        for wrapping, options in WRAPPINGS.items():
            model, optimizer = prepare(rank, evolution)
            replica = DistributedDataParallel(model, **options)
            begin = copy.deepcopy(model.state_dict())
            train(replica, optimizer, own_batches(40))
            found[algorithm, wrapping] = {"begin": begin, **outcome(model, optimizer)}
    return found


def half_batches(rank):
    return {algorithm: halves(rank, 2, algorithm) for algorithm in ("SET", "RigL", "RigL among")}


def users_rules(rank):
    """Each rank makes its own lambdas, closures and objects, which no other can load."""

    class Halving:
        def __call__(self, step):
            return 0.5 / step

    def grow(layer, count):
        return uniformly(layer, count)

    weakest = partial(lambda power, layer: layer.values.abs() ** power, 0.5)
    evolution = Evolution(
        interval=lambda step: step % 2 == 0,
        drop_fraction=Halving(),
        drop=weakest,
        grow=mixed(grow, uniformly, share=0.5),
    )
    model, optimizer = prepare(rank, evolution)
    train(DistributedDataParallel(model), optimizer, own_batches(8))
    return outcome(model, optimizer)


def weights_differ(rank):
    weights = [network(other)[0].weight.detach().abs().flatten() for other in range(2)]
    model, optimizer = prepare(rank, RigL(interval=2), start="magnitude")
    replica = DistributedDataParallel(model)
    begin = model[0].flat()
    train(replica, optimizer, own_batches(8))
    largest = weights[0].topk(model[0].nnz).indices.sort().values
    return {"begin": begin, "largest of rank 0": largest, **outcome(model, optimizer)}


def half_images(rank, ranks, algorithm, branches=False):
    """Train on this rank's part of the images; where it branches, only rank 0 goes through all convolutions."""
    torch.manual_seed(3)
    model = BranchingImages() if branches else image_network()
    optimizer = AdamW(model.parameters(), 0.01)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=ALGORITHMS[algorithm], kinds=KINDS, seed=3)
    replica = DistributedDataParallel(model, find_unused_parameters=branches) if ranks > 1 else model
    for step in range(8):
        optimizer.zero_grad()
        inputs, labels = (whole[rank::ranks] for whole in images(step, 12))
        outputs = replica(inputs, both=rank == 0) if branches else replica(inputs)
        cross_entropy(outputs, labels).backward()
        optimizer.step()
    return outcome(model, optimizer)


def convolutions(rank):
    found = {algorithm: half_images(rank, 2, algorithm) for algorithm in ("SET", "RigL", "RigL among")}
    return found | {"branches": half_images(rank, 2, "RigL", branches=True)}


class BranchingImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.always, self.sometimes = image_network(), nn.Conv2d(3, 3, 3, padding=1).double()

    def forward(self, inputs, both):
        return self.always(inputs + 0.1 * self.sometimes(inputs).tanh() if both else inputs)


class Branching(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.always, self.sometimes = nn.Linear(12, 4).double(), nn.Linear(12, 4).double()

    def forward(self, inputs, both):
        return self.always(inputs) + (self.sometimes(inputs) if both else 0)


def passes_differ(rank):
    torch.manual_seed(rank)
    model = Branching(rank)
    model, optimizer = sparsify(model, SGD(model.parameters(), 0.1), 0.3, evolution=RigL(interval=1))
    replica = DistributedDataParallel(model, find_unused_parameters=True)
    for step in range(5):
        optimizer.zero_grad()
        inputs, labels = batch(rank, step)
        cross_entropy(replica(inputs, both=rank == 0), labels).backward()
        optimizer.step()
    return outcome(model, optimizer)


def no_passes(rank):
    model, optimizer = prepare(rank, RigL(interval=100))
    replica = DistributedDataParallel(model)
    cross_entropy(replica(batch(rank)[0]), batch(rank)[1]).backward()
    return refusal(optimizer.evolve, model, optimizer)


def gradient_on_one_rank_only(rank):
    model, optimizer = prepare(rank, Evolution(interval=None, drop=saliency))
    replica = DistributedDataParallel(model)
    train(replica, optimizer, own_batches(1))
    if rank:
        model[0].values.grad = None
    optimizer.evolve()
    return outcome(model, optimizer)


def subgroup(rank):
    model, optimizer = prepare(rank, RigL(interval=2))
    optimizer.process_group = group = dist.new_group([0, 1])
    replica = DistributedDataParallel(model, process_group=group)
    train(replica, optimizer, own_batches(4))
    pickled = pickle.loads(pickle.dumps(optimizer))
    copies = copy.deepcopy(optimizer).process_group is group, pickled.process_group is dist.group.WORLD
    return {"kept": copies, **outcome(model, optimizer)}


def alone(rank):
    """Only one rank trains, a model of its own; so does a pickled copy."""
    model, optimizer = prepare(rank, GMP(until=6, interval=2))
    optimizer.process_group = None
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, own_batches(8 * rank))
    return len(optimizer.history)


def refusal(call, model, optimizer):
    """The error of `call`, and whether it left everything as it was."""
    before = copy.deepcopy(outcome(model, optimizer))
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        after = outcome(model, optimizer)
        same = all(torch.equal(old, after["model"][key]) for key, old in before["model"].items())
        return f"{type(error).__name__}: {error}", same
    return "none", False


def at_first_step(rank, model, optimizer, replica=None):
    inputs, labels = batch(rank)
    cross_entropy((replica or model)(inputs), labels).backward()
    return refusal(optimizer.step, model, optimizer)


def refusals(rank):
    found = {}

    model, optimizer = prepare(rank, GMP(until=10))
    found["GMP"] = at_first_step(rank, model, optimizer, DistributedDataParallel(model))

    model, optimizer = prepare(rank, SET(until=10 + rank))
    found["evolution"] = at_first_step(rank, model, optimizer, DistributedDataParallel(model))

    model, optimizer = prepare(rank, SET(interval=coin(0.5, seed=rank)))
    found["coin"] = at_first_step(rank, model, optimizer, DistributedDataParallel(model))

    if rank:
        model, optimizer = prepare(rank, SET(interval=lambda step: True))
    else:
        model, optimizer = prepare(rank, SET())
    found["function"] = at_first_step(rank, model, optimizer, DistributedDataParallel(model))

    model, optimizer = prepare(0, SET(), seed=rank)
    found["topology"] = at_first_step(rank, model, optimizer)

    model = network(rank)
    model = model if rank else nn.Sequential(*model, nn.Tanh(), nn.Linear(4, 4).double())
    model, optimizer = sparsify(model, SGD(model.parameters(), 0.1), 0.3)
    found["sparse layers"] = at_first_step(rank, model, optimizer)

    model = network(0)
    trained = AdamW(model.parameters())
    train(model, trained, [batch(0)])
    model, optimizer = sparsify(model, trained, 0.3, seed=rank)
    found["optimizer state"] = at_first_step(rank, model, optimizer, DistributedDataParallel(model))

    model = nn.Sequential(nn.Linear(12, 4), nn.Linear(1000, 1000))
    optimizer = SGD(model.parameters(), 0.1)
    found["skip"] = refusal(lambda: sparsify(model, optimizer, {"*": 0.05}, skip="losing"), model, optimizer)
    return found


def divergence(rank):
    """Rank 1 gets another topology, other values, another rule, another checkpoint: an error, and the way back."""
    found = {}
    for what in "topology", "values", "new topology", "step":
        evolution = Evolution(interval=2, grow=own_numbers) if what == "new topology" else RigL(interval=2)
        model, optimizer = prepare(rank, evolution)
        replica = DistributedDataParallel(model)
        train(replica, optimizer, own_batches(1))
        good = copy.deepcopy(outcome(model, optimizer))
        if rank and what == "topology":
            layer = model[0]
            free = torch.ones(layer.in_features * layer.out_features, dtype=torch.bool)
            free[layer.flat()[1:]] = False
            flat = torch.cat([layer.flat()[1:], free.nonzero()[-1]]).sort().values
            layer.set_topology(flat, layer.values.detach().clone(), None)
        if rank and what == "values":
            with torch.no_grad():
                model[2].values[0] += 1
        if what == "step":
            state = optimizer.state_dict()
            state["sparsify"]["step"] += rank
            optimizer.load_state_dict(state)
        found[what] = resumed(rank, replica, optimizer)
        if what != "new topology":
            model.load_state_dict(good["model"])
            optimizer.load_state_dict(good["optimizer"])
            train(replica, optimizer, own_batches(3))
            found[what, "resumed"] = outcome(model, optimizer)

    model, optimizer = prepare(rank, Evolution(interval=1, scope=across_layers))
    found["count"] = resumed(rank, DistributedDataParallel(model), optimizer)
    return found


def reset(rank):
    """Between folds, by one seed; and then by another on each rank."""
    model, optimizer = prepare(rank, RigL(interval=2))
    replica = DistributedDataParallel(model)
    train(replica, optimizer, own_batches(3))
    found = {}
    for what, seed in ("one seed", 7), ("two seeds", rank):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if what == "two seeds":
            found[what] = at_first_step(rank, model, optimizer, replica)[0]
        else:
            train(replica, optimizer, own_batches(3, start=3))
            found[what] = copy.deepcopy(outcome(model, optimizer))
    return found


def own_numbers(layer, count):
    """A growth rule of a user's who forgot `layer.generator`: each rank has other numbers."""
    torch.manual_seed(dist.get_rank())
    free = torch.ones(layer.shape[0] * layer.shape[1], dtype=torch.bool)
    free[layer.flat] = False
    places = free.nonzero().squeeze(1)
    return places[torch.randperm(len(places))[:count]].sort().values


def resumed(rank, replica, optimizer):
    """The error at the next evolution, and whether topologies stayed."""
    model = replica.module
    topologies = [layer.flat() for layer in model.modules() if isinstance(layer, SparseLinear)]
    error, _ = refusal(lambda: train(replica, optimizer, own_batches(2)), model, optimizer)
    after = [layer.flat() for layer in model.modules() if isinstance(layer, SparseLinear)]
    return error, all(map(torch.equal, topologies, after))


def sharded(rank):
    found = {}
    model = network(0)
    fully_shard(model)
    try:
        sparsify(model, SGD(model.parameters(), 0.1), 0.3)
    except ValueError as error:
        found["before"] = str(error)
    if torch.__version__ < (2, 7):  # its FSDP2 does not run on a CPU
        return found
    model, optimizer = prepare(0, SET())
    fully_shard(model)
    model(batch(rank)[0]).sum().backward()
    try:
        optimizer.step()
    except TypeError as error:
        found["after"] = str(error)
    return found


def traffic(rank):
    """Gradient bytes and bytes on the wire of a step, sparse and dense; which buffers are sent."""
    found = {}
    for kind in "sparse", "dense", "compiled":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
        optimizer = SGD(model.parameters(), 0.1)
        if kind != "dense":
            model, optimizer = sparsify(model, optimizer, 0.02)
        inner = torch.compile(model, backend="aot_eager") if kind == "compiled" else model
        replica = DistributedDataParallel(inner)
        sent = []
        replica.register_comm_hook(sent, counting)
        wire = []
        for _ in range(8 if kind != "compiled" else 2):
            dist.barrier()
            before = loopback()
            sent.clear()
            replica(torch.randn(4, 1000)).sum().backward()
            optimizer.step()
            dist.barrier()
            wire.append(loopback() - before)
        if rank:
            model[1].running_mean.fill_(7)
        replica(torch.randn(4, 1000))
        found[kind] = {
            "gradients": sum(sent),
            "parameters": sum(p.nbytes for p in model.parameters()),
            "wire": min(wire[1:]),  # others may use the loopback too
            "buffers": sorted(replica.named_module_buffers),
            "mean": model[1].running_mean[:3],
        }
    return found


def counting(sent, bucket):
    sent.append(bucket.buffer().nbytes)
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def loopback():
    """Bytes that went through the loopback interface; 0 where the system does not say."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def elastic(folder, dies):
    """Train from the last checkpoint on; rank 1 dies once, between two."""
    rank = dist.get_rank()
    model, optimizer = prepare(rank, RigL(interval=2))
    checkpoint, step = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    replica = DistributedDataParallel(model)
    while step < 12:
        if dies and rank == 1 and step == 7 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        train(replica, optimizer, [batch(rank, step)])
        step += 1
        if step % 3 == 0:
            if not rank:
                torch.save({"step": step, **outcome(model, optimizer)}, folder / "partial")
                (folder / "partial").replace(checkpoint)
            dist.barrier()
    return outcome(model, optimizer) | {"restarts": os.environ["TORCHELASTIC_RESTART_COUNT"]}


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    late, late_optimizer = prepare(rank, RigL(interval=2))
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    if what == "elastic":
        found = elastic(folder, dies=True)
    else:
        train(DistributedDataParallel(late), late_optimizer, own_batches(8))
        found = {"initialised_late": outcome(late, late_optimizer)}
        checks = seeds_and_data_differ, half_batches, users_rules, weights_differ, passes_differ, no_passes
        checks += gradient_on_one_rank_only, subgroup, alone, refusals, divergence, reset, sharded, traffic
        checks += (convolutions,)
        for check in checks:
            found[check.__name__] = check(rank)
        (folder / "uninterrupted").mkdir(exist_ok=True)
        found["elastic"] = elastic(folder / "uninterrupted", dies=False)
    torch.save(found, folder / f"{rank}.pt")
    gc.collect()  # a wrapped model that outlives its group can abort the process at exit (PyTorch issue 190489)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
