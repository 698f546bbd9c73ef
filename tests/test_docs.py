"""The pages in docs/ and CONTRIBUTING: their snippets run, and the code and the tests that they name are there.

A snippet runs with what those before it on its page have made. One whose first line is the comment `# folder/room.py`
runs in that module, as if it stood there; a module that does not exist is made. Tests that a snippet defines run too,
and so do the examples in its docstrings.
"""

import copy
import doctest
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from sparsify import SET, densify, kernels, plan, sparsify
from sparsify._src.kernels import dispatch
from tests.kernels import test_kernels
from tests.support.marks import needs_native
from tests.test_docstrings import READERS
from tests.test_house import FOLDERS
from tests.test_readme import as_on_a_xeon

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text() for path in [*sorted(ROOT.glob("docs/*.md")), ROOT / ".github" / "CONTRIBUTING.md"]
}
SNIPPET = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)```", flags=re.DOTALL)
HOUSE = PAGES["architecture.md"]
NAMED = sorted({(page, *pair) for page, text in PAGES.items() for pair in re.findall(r"`([\w/]+\.py)::(\w+)`", text)})
ROOMS = [
    (folder, room)
    for folder, row in re.findall(r"^\| (`\w+/`|ground|faces) \| (.*) \|$", HOUSE, flags=re.MULTILINE)
    for room in re.findall(r"`(\w+\.\w+)`", row)
]


def snippets(text):
    """Each snippet that is run, with as many empty lines before it as its page has: so a traceback's line is right."""
    for match in SNIPPET.finditer(text):
        if not match[1]:
            yield "\n" * text.count("\n", 0, match.start(2)) + match[2]


def module_of(snippet, stack):
    """The namespace of the module that the snippet belongs to, until the stack is unwound; None where it has none."""
    path = re.match(r"\s*# ([\w/]+)\.py\b", snippet)
    if not path:
        return None
    name = path[1].replace("/", ".")
    if name not in sys.modules and not (ROOT / f"{path[1]}.py").exists():
        module, parent, own = ModuleType(name), *name.rpartition(".")[::2]
        module.__package__ = parent
        sys.modules[name] = module
        stack.callback(sys.modules.pop, name)
        if parent:
            setattr(import_module(parent), own, module)
            stack.callback(delattr, import_module(parent), own)
        return vars(module)
    namespace = vars(import_module(name))
    stack.callback(restore, namespace, dict(namespace))
    namespace.update({key: copy.copy(x) for key, x in namespace.items() if isinstance(x, (dict, set, list))})
    return namespace


def restore(namespace, before):
    namespace.clear()
    namespace.update(before)


def run(page, stack):
    """Run the snippets of a page; what they change comes back when the stack is unwound."""
    own = {"__name__": "tests.page", "__package__": "tests"}
    for snippet in snippets(PAGES[page]):
        namespace = module_of(snippet, stack) or own
        before = set(namespace)
        exec(compile(snippet, page, "exec"), namespace)
        for name in [name for name in namespace if name not in before and not name.startswith("__")]:
            if name.startswith("test_"):
                namespace[name]()
            check_examples(namespace[name], name, namespace)


def check_examples(value, name, namespace):
    said = []
    if getattr(value, "__module__", None) == namespace["__name__"]:
        for test in doctest.DocTestFinder().find(value, name, module=False, globs={**READERS, **namespace}):
            doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch.onnx's own
@pytest.mark.filterwarnings("ignore:`torch.jit")  # fvcore's own, and torch.jit's
@pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated:DeprecationWarning")  # thop's own
@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT's with Transformers
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        run(page, stack)


def test_the_kernel_of_the_recipe_is_right(monkeypatch):
    with ExitStack() as stack:
        run("CONTRIBUTING.md", stack)
        monkeypatch.setitem(dispatch.KERNELS, "scattering", sys.modules["sparsify._src.kernels.scattering"])
        assert kernels.available()[-1] == "scattering"
        for dtype in torch.float32, torch.float64:
            test_kernels.test_products_and_gradients_against_dense_float64("scattering", 33, 47, 0.1, 17, dtype)


class Anchored(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["anchor"] = parameter.detach().clone()
        return loss


def test_the_buffer_of_the_recipe_holds_weights():
    model = nn.Sequential(nn.Linear(20, 10))
    sgd = Anchored(model.parameters(), lr=0.1)
    model, sgd = sparsify(model, sgd, 0.3, evolution=SET(interval=1), grown_values="fan_in_uniform")
    with ExitStack() as stack:
        for holds_weights in False, True:
            if holds_weights:
                run("CONTRIBUTING.md", stack)
            model(torch.randn(3, 20)).sum().backward()
            sgd.step()
            assert torch.equal(sgd.state[model[0].values]["anchor"], model[0].values) == holds_weights


def test_the_layer_of_the_recipe_becomes_sparse(monkeypatch):
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(10, 20))

    monkeypatch.setitem(sys.modules, "yourpackage", SimpleNamespace(Projection=Projection))
    model, x = nn.Sequential(Projection()), torch.randn(3, 20)
    weight, sgd = model[0].weight.detach().clone(), torch.optim.SGD(model.parameters(), lr=0.1)
    with ExitStack() as stack:
        run("CONTRIBUTING.md", stack)
        assert "Projection" not in str(plan(model, 0.3, start="magnitude"))
        model, sgd = sparsify(model, sgd, 0.3, start="magnitude", evolution=SET(interval=1))
    assert torch.equal(model[0].values, weight.flatten()[model[0].flat()])
    torch.testing.assert_close(model(x), x @ model[0].to_dense().t())
    model(x).sum().backward()
    sgd.step()
    assert sgd.history[0].grown["0"] > 10
    assert type(densify(model)[0]) is nn.Linear


def test_snippets_are_found():
    assert len(list(snippets(PAGES["CONTRIBUTING.md"]))) == 7


@pytest.mark.parametrize(("page", "file", "name"), NAMED)
def test_what_a_page_names_is_there(page, file, name):
    is_test = file.startswith("test_")
    path = next((ROOT / "tests").rglob(file)) if is_test else ROOT / "sparsify" / "_src" / file
    text = path.read_text()
    assert re.search(rf"^{'' if is_test else ' *'}(def|class) {name}\b", text, flags=re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize(("folder", "room"), ROOMS)
def test_rooms_that_the_architecture_names_are_there(folder, room):
    home = folder.strip("`/")
    assert (ROOT / "sparsify" / "_src" / ("" if home in ("ground", "faces") else home) / room).exists()


def test_the_picture_shows_the_folders_in_their_order():
    shown = next(line for line in HOUSE.splitlines() if line.count("-->") == len(FOLDERS) - 1)
    assert shown.strip().split(" --> ") == [*FOLDERS[:0:-1], "private"]
    assert [folder.strip("`/") for folder in dict(ROOMS)] == FOLDERS[1:]


def test_every_invariant_names_its_code_and_its_tests():
    rows = re.findall(r"^\| \*\*\w.*", HOUSE, flags=re.MULTILINE)
    assert len(rows) == 11
    for row in rows:
        _, where, proof = row.strip("| ").split(" | ")
        assert re.search(r"`[\w/]+\.py::\w+`", where)
        assert re.search(r"`test_\w+\.py::test_\w+`", proof)


def test_pre_commit_runs_what_make_lint_runs():
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    hooks = re.findall(r"entry: ([^,]+),", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]


def test_the_algorithm_of_the_rules_evolves():
    namespace = {}
    exec(compile(next(snippets(PAGES["rules.md"])), "rules.md", "exec"), namespace)
    net, sgd = namespace["net"], namespace["sgd"]
    for _ in range(200):
        sgd.zero_grad()
        net(torch.randn(4, 784)).square().mean().backward()
        sgd.step()
    assert sgd.history[-1].grown["0"] > 1000


@needs_native
def test_the_tables_of_a_plan_are_what_is_printed(monkeypatch, capsys):
    as_on_a_xeon(monkeypatch)
    with ExitStack() as stack:
        run("worth-it.md", stack)
    tables = re.findall(r"```\n(layer .*?)```", PAGES["worth-it.md"], flags=re.DOTALL)
    assert len(tables) == 2
    assert capsys.readouterr().out.startswith("".join(tables))


def test_what_it_works_with_is_proved_by_tests():
    rows = re.findall(
        r"^\| [^|-].* \|$", PAGES["compatibility.md"].partition("\n## Which torch")[0], flags=re.MULTILINE
    )[1:]
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"`test_\w+\.py::test_\w+` \|$", row)] == []


def test_the_program_of_several_processes_runs(tmp_path):
    (program,) = re.findall(r"<!-- not run: [^\n]+ -->\n```python\n(.*?)```", PAGES["distributed.md"], flags=re.DOTALL)
    (tmp_path / "program.py").write_text(program.replace("range(1000)", "range(3)"))
    (command,) = re.findall(r"```\n(torchrun .* program\.py)\n```", PAGES["distributed.md"])
    words = [sys.executable, "-m", "torch.distributed.run", *command.split()[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
