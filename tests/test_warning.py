"""Each warning points to the line of the user's that it is about, whatever trainer or wrapper lies between."""

import ast
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsify import SparseLinear, sparsify
from sparsify._src.kernels import dispatch
from sparsify._src.native import library
from sparsify._src.warning import AROUND, PASSED_OVER, TRAINERS, warn
from tests.clients.test_accelerate import Accelerator
from tests.clients.test_lightning import Automatic, lightning, loader, pytestmark  # noqa: F401
from tests.clients.test_trainer import llama, sparse_pair, trainer_of
from tests.support.models import mlp

PACKAGE = Path(__file__).parent.parent / "sparsify"


def pointed_to(call):
    """The file and the text of the line that the one warning of `call` points to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        call()
    [ours] = [warning for warning in caught if re.search("sparsify|of mine|single connection", str(warning.message))]
    return ours.filename, Path(ours.filename).read_text().splitlines()[ours.lineno - 1].strip()


def within(module, call):
    """Have a function of the module of this name call `call`."""
    namespace = {"__name__": module, "call": call}
    exec("def run(): call()", namespace)
    return namespace["run"]


@pytest.mark.parametrize("package", PASSED_OVER)
def test_lines_of_these_packages_are_passed_over(package):
    run = within(f"{package}.some.room", within(package, partial(warn, "of mine")))
    assert pointed_to(lambda: run()) == (__file__, OF_MINE)


OF_MINE = "assert pointed_to(lambda: run()) == (__file__, OF_MINE)"


@pytest.mark.parametrize("package", ["lightnings", "torchvision", "mine", ""])
def test_lines_of_others_are_not(package):
    run = within(package, partial(warn, "of mine"))
    with pytest.warns(UserWarning, match="of mine") as caught:
        run()
    assert caught[0].filename == "<string>"


def test_where_all_lines_are_passed_over_it_is_the_outermost():
    script = (
        "import sys; sys.modules['__main__'].__name__ = __name__ = 'torch'\nfrom sparsify._src.warning import warn\n"
    )
    said = subprocess.run([sys.executable, "-c", script + "warn('of mine')"], capture_output=True, text=True).stderr
    assert "<string>:3: UserWarning: of mine" in said


def test_no_other_room_warns():
    for path in PACKAGE.rglob("*.py"):
        found = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("warnings.warn", "warnings.warn_explicit")
        ]
        assert bool(found) == (path.name == "warning.py"), path


def holding_old_weights():
    model = mlp(12, 32, 4)
    held = list(model.parameters())
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3)
    return model, optimizer, held


def test_in_a_plain_loop():
    model, optimizer, _held = holding_old_weights()
    model(torch.randn(2, 12)).sum().backward()
    assert pointed_to(lambda: optimizer.step()) == (__file__, IN_A_LOOP)


IN_A_LOOP = "assert pointed_to(lambda: optimizer.step()) == (__file__, IN_A_LOOP)"


def test_within_accelerate():
    model, optimizer, _held = holding_old_weights()
    model, prepared = Accelerator(cpu=True).prepare(model, optimizer)
    model(torch.randn(2, 12)).sum().backward()
    assert pointed_to(lambda: prepared.step()) == (__file__, IN_ACCELERATE)


IN_ACCELERATE = "assert pointed_to(lambda: prepared.step()) == (__file__, IN_ACCELERATE)"


def test_within_lightning(tmp_path):
    module = Automatic()
    module.model, module.optimizer, _held = holding_old_weights()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "default_root_dir": tmp_path, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=1, **options)
    assert pointed_to(lambda: trainer.fit(module, loader())) == (__file__, IN_LIGHTNING)


IN_LIGHTNING = "assert pointed_to(lambda: trainer.fit(module, loader())) == (__file__, IN_LIGHTNING)"


def test_within_the_trainer_of_transformers(tmp_path):
    model = llama(1)
    held = list(model.parameters())
    model, optimizer = sparse_pair(model)
    trainer = trainer_of(model, optimizer, tmp_path, max_steps=1, save_strategy="no")
    assert pointed_to(lambda: trainer.train()) == (__file__, IN_TRAINER)
    assert held


IN_TRAINER = "assert pointed_to(lambda: trainer.train()) == (__file__, IN_TRAINER)"


def test_the_packages_of_the_tests_are_among_them():
    assert {"lightning", "transformers", "accelerate"} <= set(TRAINERS)
    assert {"schedulefree", "pytorch_optimizer"} <= set(AROUND)


def test_of_slow_kernels(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", None)
    dispatch._warn_of_slowness.cache_clear()
    layer, x = SparseLinear(5, 4, 0.5), torch.randn(3, 5)
    assert pointed_to(lambda: layer(x)) == (__file__, OF_SLOWNESS)


OF_SLOWNESS = "assert pointed_to(lambda: layer(x)) == (__file__, OF_SLOWNESS)"


def test_of_a_density_of_next_to_nothing():
    assert pointed_to(lambda: sparsify(mlp(12, 16, 4), None, 1e-9)) == (__file__, OF_DENSITY)


OF_DENSITY = "assert pointed_to(lambda: sparsify(mlp(12, 16, 4), None, 1e-9)) == (__file__, OF_DENSITY)"


SCRIPT = """
from torch import nn
from sparsify import sparsify
model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
try:
    sparsify(model, None, 1e-9)
except UserWarning as warning:
    print("raised", type(model[0]).__name__)
"""


@pytest.mark.parametrize(
    ("options", "out", "err"), [([], "", "script.py:6: UserWarning"), (["-W", "error"], "raised Linear", "")]
)
def test_in_a_script_and_as_an_error(options, out, err, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = {"PYTHONPATH": str(PACKAGE.parent)}
    # what other packages warn of while they are imported is no error
    options = [*options, *(["-W", "default::DeprecationWarning", "-W", "default::FutureWarning"] if options else [])]
    said = subprocess.run([sys.executable, *options, script], capture_output=True, text=True, env=root)
    assert (said.returncode, said.stdout.strip()) == (0, out), said.stderr
    assert err in said.stderr


def test_raised_as_an_error_in_a_step_it_is_raised_once_and_training_goes_on():
    model, optimizer, _held = holding_old_weights()
    model(torch.randn(2, 12)).sum().backward()
    with pytest.raises(UserWarning, match="Something still holds the dense weights"):
        optimizer.step()
    before = model[0].values.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].values, before)
    assert isinstance(model[0], nn.Module)
