"""Marks that several files of tests share."""

import pytest

TORCHS_OWN = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
"""torch.jit, torch.compile and forward-mode differentiation warn of PyTorch's own code, with dense models too."""
