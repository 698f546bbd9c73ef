"""A model that is averaged while it evolves: how averages are written, and what they should be."""

import torch
from torch.nn import functional as F

from sparsify import SET, sparsify
from tests.support.models import mlp

INTERVAL = 4
TAU = 0.1


def pair(evolution=SET(interval=INTERVAL)):  # noqa: B008
    torch.manual_seed(1)
    model = mlp(12, 16, 4, dtype=torch.float64)
    return sparsify(model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), 0.35, evolution=evolution, seed=3)


def step(model, optimizer, number, dtype=torch.float64):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64).to(dtype)
    optimizer.zero_grad()
    F.cross_entropy(model(x), torch.arange(8) % 4).backward()
    optimizer.step()


def topologies(model):
    return [model[i].flat() for i in (0, 2)]


class DenseAverage:
    """An exponential average of the dense weights, at the connections that are there; what is regrown begins anew."""

    def __init__(self, model, decay):
        self.decay = decay
        self.means = [model[i].to_dense().detach().clone() for i in (0, 2)]
        self.active = [mean != 0 for mean in self.means]

    def update(self, model):
        for number, i in enumerate((0, 2)):
            weight = model[i].to_dense().detach()
            active = torch.zeros_like(weight, dtype=torch.bool).flatten().index_fill(0, model[i].flat(), True)
            active = active.view_as(weight)
            self.means[number][active & ~self.active[number]] = 0
            self.active[number] = active
            self.means[number] = (self.decay * self.means[number] + (1 - self.decay) * weight) * active


def lerp(target, policy):
    with torch.no_grad():
        for q, p in zip(target.parameters(), policy.parameters(), strict=True):
            q.lerp_(p, TAU)


def mul_add(target, policy):
    with torch.no_grad():
        for q, p in zip(target.parameters(), policy.parameters(), strict=True):
            q.mul_(1 - TAU).add_(p, alpha=TAU)


def data_copy(target, policy):
    for q, p in zip(target.parameters(), policy.parameters(), strict=True):
        q.data.copy_(TAU * p.data + (1 - TAU) * q.data)


def data_in_place(target, policy):
    for q, p in zip(target.parameters(), policy.parameters(), strict=True):
        q.data.mul_(1 - TAU).add_(p.data, alpha=TAU)


def assigned(target, policy):
    for q, p in zip(target.parameters(), policy.parameters(), strict=True):
        q.data = TAU * p.data + (1 - TAU) * q.data


def foreach(target, policy):
    torch._foreach_lerp_([q.data for q in target.parameters()], [p.data for p in policy.parameters()], TAU)


UPDATES = [lerp, mul_add, data_copy, data_in_place, assigned, foreach]
