import re
from pathlib import Path

import pytest
import torch

from sparsify._src.conversion import processor, speed
from sparsify._src.kernels import native
from tests.support.marks import needs_native

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch.onnx's own
@pytest.mark.filterwarnings("ignore:`torch.jit")  # fvcore's own
@pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated:DeprecationWarning")  # thop's own
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, tmp_path, monkeypatch):
    """Each snippet by itself, after the first: the reader has met its names there."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for snippet in {0: SNIPPETS[0], number: SNIPPETS[number]}.values():
        torch.manual_seed(0)
        exec(compile(snippet, "README.md", "exec"), namespace)


def test_the_front_page_evolves_prunes_to_what_was_asked_and_tells(capsys):
    torch.manual_seed(0)
    namespace = {}
    exec(compile(SNIPPETS[0], "README.md", "exec"), namespace)
    shown = re.search(r"```\n(\d.*?)```", README, flags=re.DOTALL)[1]
    told = capsys.readouterr().out
    right = re.compile(r"^\d+\.\d%")
    assert right.sub("", told) == right.sub("", shown), "density and bytes are exact"
    assert float(namespace["right"]) > 0.92
    assert abs(float(namespace["right"]) - float(shown.partition("%")[0]) / 100) < 0.02
    assert len(namespace["optimizer"].history) > 20
    assert abs(namespace["whole"].density - 0.05) < 1e-3


def test_there_are_snippets():
    assert len(SNIPPETS) >= 4


def test_the_public_names_are_in_the_readme():
    import sparsify

    assert [name for name in sparsify.__all__ if f"`{name}" not in README] == []


def test_the_tests_that_the_readme_names_are_there():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", README)
    assert len(named) > 30
    for file, test in named:
        (path,) = Path(__file__).parent.rglob(file)
        assert f"\ndef {test}(" in path.read_text(), f"{file}::{test}"


@needs_native
def test_the_tables_of_the_readme_are_what_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(native, "LEVEL", 2)  # speeds are the built-in ones of AVX-512
    monkeypatch.setattr(processor, "described", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(speed, "_known", {})
    number = next(n for n, snippet in enumerate(SNIPPETS) if "print(plan(" in snippet)
    namespace = {}
    for snippet in SNIPPETS[0], SNIPPETS[number]:
        capsys.readouterr()
        exec(compile(snippet, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    tables = re.findall(r"```\n(layer .*?)```", README, flags=re.DOTALL)
    assert len(tables) == 2
    assert printed.startswith("".join(tables))


def test_the_algorithm_of_the_readme_evolves():
    number = next(n for n, snippet in enumerate(SNIPPETS) if "near_the_diagonal" in snippet)
    namespace = {}
    for snippet in SNIPPETS[0], SNIPPETS[number]:
        exec(compile(snippet, "README.md", "exec"), namespace)
    net, sgd = namespace["net"], namespace["sgd"]
    for _ in range(200):
        sgd.zero_grad()
        net(torch.randn(4, 784)).square().mean().backward()
        sgd.step()
    assert sgd.history[-1].grown["0"] > 1000
