"""Every learning-rate scheduler of torch, around an optimizer that evolves."""

import copy
import inspect

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from sparsify import SET, sparsify
from tests.support.comparing import assert_same
from tests.support.models import mlp

STEPS = 30

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [4, 11], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 9),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 12),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 20)], [5]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=STEPS + 1),
    "SWALR": lambda o: SWALR(o, 0.05, anneal_epochs=10),
}


def test_every_scheduler_of_torch_is_here():
    classes = [c for c in vars(lr_scheduler).values() if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)]
    names = {c.__name__ for c in classes} - {"LRScheduler", "_LRScheduler"}
    assert names | {"SWALR"} == set(SCHEDULERS)


def plain():
    torch.manual_seed(0)
    model = mlp(12, 16, 4)
    weights, biases = list(model.parameters())[::2], list(model.parameters())[1::2]
    groups = [{"params": weights, "lr": 0.05}, {"params": biases, "lr": 0.02}]
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def pair(name, before):
    """A sparse model, its optimizer, and a scheduler built before or after sparsify."""
    model, optimizer = plain()
    scheduler = SCHEDULERS[name](optimizer) if before else None
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=SET(interval=3), seed=1)
    return model, optimizer, scheduler or SCHEDULERS[name](optimizer)


def run(model, optimizer, scheduler, steps):
    """Train, and give what the scheduler sets: learning rates and momenta of every group before each step."""
    rates = []
    for number in steps:
        rates.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        scheduler.step(*[1.0] * (type(scheduler) is lr_scheduler.ReduceLROnPlateau))
    return rates


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rates_are_those_of_the_plain_optimizer_and_evolution_keeps_its_schedule(name, before):
    model, optimizer = plain()
    expected = run(model, optimizer, SCHEDULERS[name](optimizer), range(STEPS))
    model, optimizer, scheduler = pair(name, before)
    assert run(model, optimizer, scheduler, range(STEPS)) == expected
    assert len(set(map(str, expected))) > 1
    assert [record.step for record in optimizer.history] == list(range(3, STEPS + 1, 3))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_is_resumed(name):
    first = pair(name, before=True)
    run(*first, range(10))
    states = copy.deepcopy([part.state_dict() for part in first])
    expected = run(*first, range(10, STEPS))
    resumed = pair(name, before=False)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert run(*resumed, range(10, STEPS)) == expected
    assert_same(resumed[0].state_dict(), first[0].state_dict())
