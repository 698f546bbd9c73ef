"""The loop without a trainer that Accelerate and Lightning are held against: the same data, steps and schedule."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from sparsify import SET, GraNet

ACCUMULATED, CLIP = 4, 0.1
EPOCHS, STEPS_PER_EPOCH = 3, 3  # ten batches: four, four and the two that are left
EVOLUTIONS = {"SET": SET(interval=2), "GraNet": GraNet(until=8, prune_until=6, interval=2, start_density=0.8)}


def dataset():
    inputs = torch.randn(80, 12, generator=torch.Generator().manual_seed(7))
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


def annealed(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * STEPS_PER_EPOCH)


def train(model, optimizer, batches, bf16):
    """All epochs; gives the states of model and optimizer, and the last learning rates."""
    scheduler = annealed(optimizer)
    for epoch in range(EPOCHS):
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        for number, (inputs, labels) in enumerate(batches, 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(inputs).float(), labels)
            (loss / ACCUMULATED).backward()
            if number % ACCUMULATED == 0 or number == len(batches):
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert [record.step for record in optimizer.history] == [2, 4, 6, 8]
    return model.state_dict(), optimizer.state_dict(), scheduler.get_last_lr()
