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
FOLDERS = ["torch_private", "native", "ground", "kernels", "evolution", "layers", "training"]
FOLDERS += ["telemetry", "conversion", "pictures", "faces"]
"""Each may import those before it, and its own rooms."""

INSIDE = "sparsify._src"
FACES = {f"{INSIDE}.api", f"{INSIDE}.interchange"}
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
    if room in FACES or not room.startswith(f"{INSIDE}."):
        return "faces"
    if room == f"{INSIDE}.torch_private":
        return "torch_private"
    first, *rest = room.removeprefix(f"{INSIDE}.").split(".")
    return first if rest or (ROOT / "sparsify" / "_src" / first).is_dir() else "ground"


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


def private_names(tree):
    """The names of PyTorch's that begin with an underscore: `torch._C...`, `from torch._decomp import ...`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ELSEWHERE:
            yield node.attr
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in ("torch", "forward_ad"):
                yield node.attr


ELSEWHERE = {
    "_version",
    "_module_parameters",
    "_assign_modules_buffers",
    "_load_state_dict_pre_hooks",
    "_backward_hooks",
}
"""Private attributes of PyTorch's objects."""


def test_private_names_are_seen():
    assert list(private_names(ast.parse("torch._C._x()"))) == ["_x", "_C"]
    assert list(private_names(ast.parse("from torch._decomp import y"))) == ["_decomp"]
    assert list(private_names(ast.parse("tensor._version"))) == ["_version"]


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - {f"{INSIDE}.torch_private"}))
def test_private_names_of_pytorch_are_in_one_room(room):
    assert not set(private_names(ast.parse(ROOMS[room].read_text())))


def test_nothing_imports_the_face():
    assert [room for room in ROOMS if f"{INSIDE}.api" in imports(room)] == ["sparsify"]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_are_short(room):
    assert len(ROOMS[room].read_text().splitlines()) <= LONGEST
