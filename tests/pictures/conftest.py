import matplotlib
import pytest
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def _nothing_global_changes():
    """No picture changes how matplotlib draws, or shows itself; figures are closed."""
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
