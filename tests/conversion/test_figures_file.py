"""Where what was measured is kept, and what happens if it cannot be, or is broken."""

import json
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from sparsify._src.conversion import figures_file
from sparsify._src.conversion.figures import GRID, Pair
from sparsify._src.conversion.figures_file import Kept, folder, path, read, write
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window

KEY = {"processor": {"model name": "Abacus"}, "threads": 2}
LAYERS = {
    Place(True, 3, 4, 8): Pair(2.0, {5: 1.0, 7: 1.5}),
    Place(False, 3, 18, 16, Window((3, 3), (2, 1), (1, 0), (1, 2), 2), (9, 10)): Pair(3.0, {5: 1.0}),
    Place(True, 3, 6, 16, Window((3,), (2,), (1,), (1,)), (9,)): Pair(4.0, {5: 1.0}),
}
KEPT = Kept("2026-01-02", np.full(GRID, 0.5), LAYERS)


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "not" / "there"))


def test_what_is_written_is_read():
    assert read(KEY) is None
    assert write(KEY, KEPT) == ""
    found = read(KEY)
    assert (found.date, found.layers) == (KEPT.date, KEPT.layers)
    assert np.array_equal(found.grid, KEPT.grid)
    assert read(KEY | {"threads": 1}) is None
    assert [file.suffix for file in folder().iterdir()] == [".json"]


@pytest.mark.parametrize("where", ["grid", "layers", "date", "key"])
def test_a_broken_file_is_as_none(where):
    write(KEY, KEPT)
    held = json.loads(path(KEY).read_text())
    del held[where]
    path(KEY).write_text(json.dumps(held))
    assert read(KEY) is None


@pytest.mark.parametrize(
    ("where", "broken"),
    [
        ("grid", [1.0]),
        ("grid", "x"),
        ("layers", [[True, 3, 4, 8, -1.0, []]]),
        ("layers", [[True, 3]]),
        ("layers", 5),
        ("layers", [[True, 3, 18, 8, 1.0, [], [1, 3, 3, 1], [9, 9]]]),
        ("layers", [[True, 3, 18, 8, 1.0, [], [1, 3, 3, 1, 1, 0, 0, 1, 1], [9]]]),
        ("layers", [[True, 3, 18, 8, 1.0, [], [1, 3, 3, 1, 1, 0, 0, 1, 1], [9, 2]]]),
        ("layers", [[True, 3, 18, 8, 1.0, [], [1, 3, 3, 1, 1, 0, 0, 1, 1]]]),
        ("key", {}),
    ],
)
def test_a_file_of_something_else_is_as_none(where, broken):
    write(KEY, KEPT)
    held = json.loads(path(KEY).read_text())
    path(KEY).write_text(json.dumps(held | {where: broken}))
    assert read(KEY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"grid"', "\xff"])
def test_what_is_no_record_is_as_none(text):
    write(KEY, KEPT)
    path(KEY).write_bytes(text.encode("latin1"))
    assert read(KEY) is None
    assert write(KEY, KEPT) == ""
    assert read(KEY) is not None, "and measured anew"


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "file"))
    assert "could not be written (" in write(KEY, KEPT)
    assert read(KEY) is None
    monkeypatch.setattr(figures_file, "folder", lambda: None)
    assert write(KEY, KEPT) == "there is no folder for it"
    assert read(KEY) is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="other folders there")
def test_the_folder_is_the_users_for_caches(monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert folder() == Path("/own")
    monkeypatch.setenv("SPARSIFY_CACHE", "")
    assert folder() == Path("/xdg/sparsify")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert folder() == Path("/home/somebody/.cache/sparsify")

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert folder() is None


def write_often(number):
    for _ in range(50):
        assert write(KEY, KEPT._replace(grid=np.full(GRID, float(number)))) == ""


def test_who_reads_while_others_write_finds_one_whole_file():
    write_often(1)
    context = get_context("spawn")
    writers = [context.Process(target=write_often, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    found = set()
    while any(writer.is_alive() for writer in writers):
        found |= {float(each) for each in np.unique(read(KEY).grid)}
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert found <= {1.0, 2.0}
