import matplotlib
import pytest


@pytest.fixture(autouse=True)
def _nothing_global_changes():
    """No picture changes how matplotlib draws, or where."""
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    yield
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
