"""Every message of an error or a warning is explained in docs/troubleshooting.md, or in docs/rules.md; and every reason
why a layer stays dense.

The source is walked: of each message its beginning counts, the words before its first placeholder and before ", got",
or, where it begins with a placeholder, the first words after that.
"""

import ast
import builtins
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "sparsify" / "_src"
TREES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
EXPLAINED = " ".join(
    "\n".join((ROOT / "docs" / page).read_text() for page in ("troubleshooting.md", "rules.md")).split()
)
RAISED = {name for name in vars(builtins) if name.endswith(("Error", "Warning"))} | {"Reason"}
WARNING = {"warn", "warnings.warn"}

PUT_TOGETHER = {
    "conversion/eligibility.py": "a reason that is given somewhere else in it",
    "conversion/examples.py": "what the model itself has raised",
    "evolution/layer_view.py": "an AttributeError with the attribute's name alone, for hasattr",
    "layers/checkpoint.py": "another error, after the key's name",
    "layers/loading.py": "several errors",
    "ready_made.py": "an argument and a kind of rule",
    "training/following.py": "another error",
    "training/saved.py": "a key and a rule: `refused`, whose rules are looked at",
    "warning.py": "what `warn` is told",
    "written.py": "an option that is no argument, and what it is called here",
}
"""Modules in which a message has no beginning that the source shows, and what it is then."""


REASONS = {"eligibility", "adapters", "inventory"}
"""Modules of `conversion` whose functions give reasons why a layer stays dense."""


@cache
def definitions():
    """What names stand for: those assigned to in each module, and what functions return, of the whole package."""
    assigned, returned = {}, {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned.setdefault(node.targets[0].id, []).append((tree, node.value))
            if isinstance(node, ast.FunctionDef):
                own = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
                returned[node.name] = [(tree, value) for value in own]
    return assigned, returned


def texts(tree, node, depth=0):
    """What an expression in a module may say: lists of constant pieces, with None where something is put in."""
    assigned, returned = definitions()
    known = []
    match node:
        case ast.Constant(str(text)):
            return [[text]]
        case ast.Dict(_, values):
            return [said for value in values for said in texts(tree, value, depth)]
        case ast.Call(ast.Attribute(ast.Subscript(ast.Name(name)) | ast.Name(name), "format")):  # "{name} ...".format()
            known = [(home, value) for home, value in assigned.get(name, []) if home is tree or name.isupper()]
            return [re.split(r"\{[^}]*\}", said[0]) for home, value in known for said in texts(home, value) if said[0]]
        case ast.JoinedStr(values):
            return [[value.value if isinstance(value, ast.Constant) else None for value in values]]
        case ast.BinOp(left, ast.Add(), right):
            return [a + b for a, b in product(texts(tree, left, depth), texts(tree, right, depth))]
        case ast.IfExp(_, body, orelse):
            return texts(tree, body, depth) + texts(tree, orelse, depth)
        case ast.Call(ast.Attribute(ast.JoinedStr() as said, _)):  # f"...".rstrip()
            return texts(tree, said, depth)
        case ast.Call(ast.Name(name) | ast.Attribute(_, name)):
            known = returned.get(name, [])
        case ast.Name(name) if not name.isupper():  # of a function
            known = [(home, value) for home, value in assigned.get(name, []) if home is tree]
        case ast.Name(name) | ast.Attribute(_, name) if name.isupper():
            known = assigned.get(name, [])
    found = [said for home, value in known if depth < 4 for said in texts(home, value, depth + 1)]
    return found or [[None]]


def beginning(pieces):
    """The words that tell a message from others."""
    for piece in pieces:
        words = re.split(r",? got\b|\n", piece or "")[0].strip(" .,:;'\"([{=")
        if len(words.split()) > 1:
            return " ".join(words.split())
    return ""


def said_in(path, node):
    """The expression of a message or a reason that a node of the tree says, or None; of `refused(...)` the rule."""
    if isinstance(node, ast.Return) and path.stem in REASONS:
        return node.value
    if isinstance(node, ast.Call) and node.args:
        name = ast.unparse(node.func)
        return node.args[1] if name == "refused" else node.args[0] if name in RAISED | WARNING else None
    return None


def messages():
    """(module, line, beginning) of each message, and of each reason that has words."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            said = said_in(path, node)
            for words in [] if said is None else map(beginning, texts(tree, said)):
                if words or isinstance(node, ast.Call):
                    yield str(path.relative_to(SOURCE)), node.lineno, words


MESSAGES = sorted({said: f"{module}:{line}" for module, line, said in messages() if said}.items())


@pytest.mark.parametrize(("said", "at"), MESSAGES)
def test_a_message_is_explained(said, at):
    assert said in EXPLAINED, at


def test_messages_are_found():
    found = dict(MESSAGES)
    assert len(found) > 200
    for said in (
        "density must be given, such as density=0.1 for a tenth of the weights",  # plain
        "must be a number in (0, 1]",  # the argument is put in
        "density must be given where evolution prunes",  # a constant
        "model must be the one that sparsify() returned",  # a function's
        "must be a tuple or a list",  # of an entry of a state dict
        "Training goes on for more than twice the",  # a warning
        "skip must leave a",  # a text with a place for words
        "its weight has gradient hooks",  # a reason
    ):
        assert said in found


def test_which_messages_have_no_beginning_is_known():
    assert {module for module, _, said in messages() if not said} == set(PUT_TOGETHER)
