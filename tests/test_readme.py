"""The front page: its snippets run, and what it shows is what is printed."""

import re
from pathlib import Path

import pytest
import torch

from sparsify._src.conversion import processor, speed
from sparsify._src.kernels import native
from tests.support.marks import needs_native

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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
    assert len(SNIPPETS) >= 3


def test_the_diff_of_a_loop_adds_two_lines_and_is_a_loop_that_runs():
    (diff,) = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    lines = diff.splitlines()
    assert [line[0] for line in lines if line[0] != " "] == ["+", "+"]
    loader = [(torch.randn(4, 20), torch.randint(5, (4,)))] * 3
    namespace = {"torch": torch, "MyModel": lambda: torch.nn.Linear(20, 5), "loader": loader, "epochs": 2}
    exec("\n".join(line[1:] for line in lines), namespace)
    assert "of 1 sparse layer" in str(namespace["optimizer"])


@needs_native
def test_the_table_of_the_readme_is_what_is_printed(monkeypatch, capsys):
    as_on_a_xeon(monkeypatch)
    number = next(n for n, snippet in enumerate(SNIPPETS) if "print(plan(" in snippet)
    namespace = {}
    for snippet in SNIPPETS[0], SNIPPETS[number]:
        capsys.readouterr()
        exec(compile(snippet, "README.md", "exec"), namespace)
    (table,) = re.findall(r"```\n(layer .*?)```", README, flags=re.DOTALL)
    assert capsys.readouterr().out == table


def as_on_a_xeon(monkeypatch):
    """Speeds are the built-in ones of AVX-512 there, as the pages show them."""
    monkeypatch.setattr(native, "LEVEL", 2)
    monkeypatch.setattr(processor, "described", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setattr(speed, "_known", {})
