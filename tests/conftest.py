import sys
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.support")
from tests.support import torchvision_on_cpu  # noqa: E402, F401

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))


@pytest.fixture(autouse=True)
def _unmeasured(tmp_path_factory, monkeypatch):
    """No test finds what was measured on this machine, nor leaves anything there."""
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _without_figures():
    """No test leaves a figure open: of more than twenty matplotlib warns."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
