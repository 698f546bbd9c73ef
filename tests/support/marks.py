"""Marks that several files of tests share."""

import re

import pytest
import torch

from sparsify import kernels

TORCHS_OWN = pytest.mark.filterwarnings("ignore:`torch.jit")
"""torch.jit, torch.compile and forward-mode differentiation warn of PyTorch's own code, with dense models too."""

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
needs_native = pytest.mark.skipif("native" not in kernels.available(), reason="no C compiler when installed")
EACH = [
    pytest.param(name, marks=pytest.mark.skipif(name not in kernels.available(), reason=f"no {name} kernels here"))
    for name in ("native", "torch_sparse", "aten")
]
PATHS = [pytest.param("compiled", marks=needs_native), "plain"]
"""By the compiled library, and by the functions that take its place where there is none."""


def shown(value):
    """A name of a parametrized test that is the same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+|\d{9,}", "", str(value))
