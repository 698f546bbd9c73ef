"""Who imports sparsify hears nothing of torch-sparse's deprecated ways, whatever filters of warnings are set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TRAINING = """
import copy, pickle, sys, threading, warnings
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsify
from sparsify import SET, SparseLinear, densify, summary
from sparsify import kernels

assert not {"torch_sparse", "torch_scatter", "scipy"} & set(sys.modules), "it waits until it is needed"
model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
adam = torch.optim.Adam(model.parameters())
model, optimizer = sparsify.sparsify(model, adam, 0.2, evolution=SET(interval=2, until=2))
x = torch.randn(8, 20)


def train(model, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


train(model, optimizer)
train(*copy.deepcopy((model, optimizer)))
train(*pickle.loads(pickle.dumps((model, optimizer))))
str(summary(model)), densify(model)(x)
filters, kept = warnings.filters, list(warnings.filters)
"""

USES = {
    "weight": "assert torch.equal(model[0].weight.to_dense(), model[0].to_dense())\nmodel[0].weight @ x.t()",
    "kernels": "with kernels.use('torch_sparse'):\n    train(model, optimizer)",
    "on meta": "with torch.device('meta'):\n    model[0].weight",
    "fake": "with FakeTensorMode(allow_non_fake_inputs=True):\n    model[0].weight",
    "inference": "with torch.inference_mode(), kernels.use('torch_sparse'):\n    model(x), model[0].weight",
    "copied": "copy.deepcopy(model)[0].weight, pickle.loads(pickle.dumps(model))[0].weight",
    "threads": "errors, start = [], threading.Barrier(8)\nthreading.excepthook = errors.append\n"
    "def use():\n    start.wait()\n    model[0].weight\n"
    "threads = [threading.Thread(target=use) for _ in range(8)]\n"
    "[thread.start() for thread in threads], [thread.join() for thread in threads]\nassert not errors, errors",
}

UNTOUCHED = """
assert "torch_sparse" in sys.modules
assert warnings.filters is filters and warnings.filters == kept, warnings.filters
train(model, optimizer)
"""


def quiet(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_the_import_is_quiet(tmp_path):
    assert quiet("-c", "import sparsify", folder=tmp_path) == ""


@pytest.mark.parametrize("use", USES)
def test_so_is_all_that_follows(use, tmp_path):
    assert quiet("-c", TRAINING + USES[use] + UNTOUCHED, folder=tmp_path) == ""


def test_a_users_pytest_takes_warnings_for_errors(tmp_path):
    body = (TRAINING + USES["weight"]).replace("\n", "\n    ")
    (tmp_path / "test_it.py").write_text(f"import sparsify\n\ndef test_it():{body}\n")
    quiet("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_it.py", folder=tmp_path)


def test_what_others_script_still_warns(tmp_path):
    after = (
        "\ntry:\n    torch.jit.script(nn.ReLU())\nexcept DeprecationWarning:\n    pass\nelse:\n    raise SystemExit(1)"
    )
    quiet("-c", TRAINING + USES["weight"] + after, folder=tmp_path)
