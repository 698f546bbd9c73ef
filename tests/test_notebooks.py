"""The notebooks in docs/ run from top to bottom, and are stored with the outputs of such a run.

`python -m tests.test_notebooks` runs them, and stores what comes out.
"""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip(
    "matplotlib.font_manager"
)  # makes its cache of fonts, of which it would tell in a notebook's stderr

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))


def run(notebook, folder):
    """Run all cells in a process of their own; an error of a cell is raised."""
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()


def kinds(notebook):
    """What each cell has put out: streams by their names, and the forms of a value (text, HTML, a picture)."""
    return [[sorted(out.get("data", [out.get("name")])) for out in cell.get("outputs", [])] for cell in notebook.cells]


@pytest.mark.filterwarnings("ignore")  # of the client's own; those of a cell go to its stderr
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_puts_out_what_is_stored(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    run(again, tmp_path)
    assert kinds(again) == kinds(stored)
    every = [kind for cell in kinds(again) for kind in cell]
    assert ["stdout"] in every
    assert ["stderr"] not in every


def test_there_are_two():
    assert len(NOTEBOOKS) >= 2


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        run(notebook, path.parent)
        for cell in notebook.cells:
            cell.metadata = {}
        notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(notebook, path)
