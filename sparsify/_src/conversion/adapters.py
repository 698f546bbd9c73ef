"""Finds the layers of adapters, LoRA and its kin: so thin that a sparse one would be larger and slower."""

import re
import sys
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from torch import nn

OF_PEFT = "it is an adapter (PEFT)"
UNDER_PEFT = "an adapter (PEFT) reads its weight directly"
BY_HAND = "it is an adapter (LoRA)"

SAYS_LORA = re.compile("(?<![A-Za-z])lora(?![a-z])|LoRA|Lora(?![a-z])|LORA")
"""In the name of a module or a class; "exploration" does not."""


def why_dense(model: nn.Module) -> dict[nn.Module, str]:
    """The reason of each module that is part of an adapter, or that one adds to."""
    reasons = dict.fromkeys(_written_by_hand(model), BY_HAND)
    tuners = _tuners(model)
    for tuner in tuners:
        if (layer := tuner._modules.get("base_layer")) is not None:
            reasons |= dict.fromkeys(layer.modules(), UNDER_PEFT)
    for tuner in tuners:
        before = [tuner._modules.get(name) for name in ("base_layer", "model")]  # what was there before PEFT came
        user_own = {module for part in before if part is not None for module in part.modules()}
        reasons |= {module: OF_PEFT for module in tuner.modules() if module not in user_own}
    return reasons


def _tuners(model: nn.Module) -> list[nn.Module]:
    """PEFT's modules: around a layer, around the model, and those that make prompts."""
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")
    if peft is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, peft.BaseTunerLayer) or type(module).__module__.startswith("peft.tuners.")
    ]


def _written_by_hand(model: nn.Module) -> Iterator[nn.Module]:
    """Layers without bias that a name calls LoRA; or, where a class is called so, two that narrow and widen again."""
    for name, module in model.named_modules():
        linears = [
            (child_name, child)
            for child_name, child in module._modules.items()
            if isinstance(child, nn.Linear) and child.bias is None
        ]
        own_name = name.rpartition(".")[2]
        yield from (child for child_name, child in linears if SAYS_LORA.search(f"{own_name}.{child_name}"))
        if SAYS_LORA.search(type(module).__name__):
            for (_, down), (_, up) in permutations(linears, 2):
                if down.out_features == up.in_features < min(down.in_features, up.out_features):
                    yield from (down, up)
