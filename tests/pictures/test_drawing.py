import subprocess
import sys

import pytest


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    from sparsify import SparseLinear, plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'^matplotlib must be .*pip install "sparsify-torch\[plot\]"'):
        plot.topology(SparseLinear(3, 2, 0.5))
    with pytest.raises(ModuleNotFoundError, match=r"^matplotlib must be"):
        plot.Film(print)


def test_matplotlib_is_imported_only_where_something_is_drawn():
    code = "import sparsify, sys; assert 'matplotlib' not in sys.modules; sparsify.plot.inputs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
