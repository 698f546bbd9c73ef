"""What passes from a module to the one that takes its place, beside its tensors."""

import copy

from torch import nn

from sparsify._src.torch_private import rebind_loading_hooks

OWN = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("in_features", "out_features", "transposed", "zero_bias", "resets"),
    *("swap", "was_copied", "observer", "remarks", "_checked"),
}
"""Attributes of a module that do not pass to the one that takes its place."""


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Give `new` what hangs on `old` beside its tensors: hooks, train/eval flag, attributes of the user's."""
    new.__dict__.update({name: copy.copy(value) for name, value in old.__dict__.items() if name not in OWN})
    rebind_loading_hooks(new, old)
