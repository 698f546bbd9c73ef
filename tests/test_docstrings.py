"""Examples in docstrings do what they say, and every public name has one."""

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import nn

import sparsify
from sparsify import evolution, interchange, kernels, plot, telemetry

READERS = {"torch": torch, "nn": nn, "kernels": kernels, "telemetry": telemetry}
READERS |= {name: vars(module)[name] for module in (evolution, sparsify) for name in module.__all__}
"""What an example may take as imported: torch, nn, our public names, two modules. All else it imports itself."""

FACES = [evolution, interchange, kernels, plot, telemetry]
MODULES = ["sparsify", *(found.name for found in pkgutil.walk_packages(sparsify.__path__, "sparsify."))]
PUBLIC = {f"sparsify.{name}": vars(sparsify)[name] for name in sparsify.__all__}
PUBLIC |= {
    f"sparsify.{face.__name__.rpartition('.')[2]}.{name}": vars(face)[name] for face in FACES for name in face.__all__
}


def examples(name):
    """The docstrings of a module that hold examples; those of decorated functions too, which doctest passes over."""
    module, finder = import_module(name), doctest.DocTestFinder(exclude_empty=True)
    tests = finder.find(module, globs=READERS)
    found = {test.name for test in tests}
    for own, value in vars(module).items():
        is_decorated = getattr(value, "__module__", None) == name and hasattr(value, "__wrapped__")
        if is_decorated and f"{name}.{own}" not in found:
            tests += finder.find(inspect.unwrap(value), f"{name}.{own}", globs=READERS)
    return [test for test in tests if test.examples]


EXAMPLES = [test for name in MODULES if name != "sparsify._src.native._compiled" for test in examples(name)]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_an_example_does_what_it_says(test):
    said = []
    doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or "")
