"""Steps of training, and a dense network that takes them as a sparse one should."""

import torch
from torch.nn import functional as F
from torch.optim import LBFGS

from tests.support.models import mlp

STEPS = 22


def batches(count=STEPS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 8, 12, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(4, (count, 8), generator=generator)
    return list(zip(inputs, labels, strict=True))


def step(model, optimizer, batch, after_backward=lambda: None):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        after_backward()
        return loss

    return optimizer.step(closure)


class DenseTwin:
    """A dense network trained by the plain optimizer; its inactive weights are held at zero by hand."""

    def __init__(self, sparse, make, fresh):
        self.model = mlp(12, 16, 4, dtype=torch.float64)
        self.optimizer = make(self.model.parameters())
        self.fresh = fresh
        self.pairs = [(sparse[i], self.model[i].weight) for i in (0, 2)]
        self.active = {}
        with torch.no_grad():
            for layer, weight in self.pairs:
                weight.copy_(layer.to_dense())
                self.active[weight] = self.topology(layer)
        for i in (0, 2):
            self.model[i].bias.data.copy_(sparse[i].bias.data)

    @staticmethod
    def topology(layer):
        return torch.zeros(layer.shape, dtype=torch.bool).flatten().index_fill(0, layer.flat(), True).view(layer.shape)

    def step(self, batch, after_backward=lambda: None):
        def hold():
            for weight, active in self.active.items():
                weight.grad *= active
            after_backward()

        return step(self.model, self.optimizer, batch, hold)

    @torch.no_grad()
    def follow(self):
        """Take over the sparse network's topology: drop, grow at zero, reset the buffers of both."""
        for layer, weight in self.pairs:
            now, before = self.topology(layer), self.active[weight]
            self.active[weight] = now
            weight[before & ~now] = 0
            if isinstance(self.optimizer, LBFGS):
                self.optimizer.state.clear()
            for key, buffer in self.optimizer.state.get(weight, {}).items():
                if torch.is_tensor(buffer) and buffer.shape == weight.shape:
                    buffer[before & ~now] = 0
                    buffer[now & ~before] = self.fresh.get(key, 0.0)
            assert (before != now).any()
