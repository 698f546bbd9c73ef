import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from . import torchvision_on_cpu  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

TORCHS_OWN = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
"""torch.jit, torch.compile and forward-mode differentiation warn of PyTorch's own code, with dense models too."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def mlp(*sizes: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def snapshot(model, optimizer):
    """All that a failed call could have changed, by identity and by value."""
    return (
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, id(p), p.detach().clone()) for name, p in model.named_parameters()],
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        {id(p): {k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for p, s in optimizer.state.items()},
        (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)),
    )


def assert_same(first, second):
    """Equal to the last bit, through nested lists, tuples and dicts."""
    assert type(first) is type(second)
    if torch.is_tensor(first):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second
