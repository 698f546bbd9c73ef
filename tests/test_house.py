"""The house: imports run one way, from what is used to who uses it, in types too; see docs/architecture.md."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "sparsify").rglob("*.py")
}
FOLDERS = ["native", "ground", "kernels", "evolution", "layers", "training", "conversion", "faces"]
"""Each may import those before it, and its own rooms."""

FACES = {"sparsify", "sparsify.api", "sparsify.interchange"}
LONGEST = 250
"""Lines of a room."""


def imports(room):
    """The rooms that `room` imports, wherever the import stands: under TYPE_CHECKING and in functions too."""
    found = set()
    for node in ast.walk(ast.parse(ROOMS[room].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{room} imports relatively"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ROOMS else node.module for name in within}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in ROOMS} - {room}


def folder(room):
    if room in FACES:
        return "faces"
    first, *rest = room.removeprefix("sparsify.").split(".")
    return first if rest or (ROOT / "sparsify" / first).is_dir() else "ground"


def circles(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circles({"a": {"b", "c"}, "b": {"c"}})


def test_no_import_runs_in_a_circle():
    graph = {room: imports(room) for room in ROOMS}
    assert sum(map(len, graph.values())) > 150, "the imports were not found"
    assert not circles(graph)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_go_down_the_house(room):
    above = {name for name in imports(room) if FOLDERS.index(folder(name)) > FOLDERS.index(folder(room))}
    assert not above


def test_nothing_imports_the_face():
    assert [room for room in ROOMS if "sparsify.api" in imports(room)] == ["sparsify"]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_are_short(room):
    assert len(ROOMS[room].read_text().splitlines()) <= LONGEST
