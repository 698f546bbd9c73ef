"""sparsify does without torch-sparse until its classes or kernels are used; who imports it hears nothing of that.

torch-sparse warns of deprecated ways when it is imported; none of that shows, whatever filters of warnings are set.
"""

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
str(summary(model, batch=64)), str(sparsify.plan(densify(model), 0.2)), densify(model)(x)
assert not {"torch_sparse", "torch_scatter", "scipy"} & set(sys.modules), "nothing of this needs it"
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
    after = "\ntry:\n    torch.jit.script(nn.ReLU())\nexcept Warning:\n    pass\nelse:\n    raise SystemExit(1)"
    quiet("-c", TRAINING + USES["weight"] + after, folder=tmp_path)


WITHOUT = """
import copy, io, pickle, sys

MISSING = {missing}


class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocked)
import warnings
import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import sparsify
from sparsify import GMP, SET, GraNet, RigL, Static, densify, interchange, kernels, plan, summary, trim
"""

EVERYTHING = """
def model():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(encoder, nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5))


def train(model, optimizer, steps=6):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 16)).square().mean().backward()
        optimizer.step()


for evolution in SET(interval=2, until=6), RigL(interval=2), GraNet(interval=2), GMP(interval=2), Static():
    dense = model()
    str(plan(dense, 0.3, batch=64))
    sparse, adam = sparsify.sparsify(dense, torch.optim.Adam(dense.parameters()), 0.3, steps=12, evolution=evolution)
    average = AveragedModel(sparse)
    train(sparse, adam, 1)
    average.update_parameters(sparse)
    train(sparse, adam, 11)
    average.update_parameters(sparse)
    train(*copy.deepcopy((sparse, adam)))
    train(*pickle.loads(pickle.dumps((sparse, adam))))
    file = io.BytesIO()
    torch.save((sparse.state_dict(), adam.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    loaded, _ = sparsify.sparsify(model(), start=weights)
    served = pickle.loads(pickle.dumps(sparse.eval()))
    x = torch.randn(4, 3, 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", module="torch.jit")  # of itself
        traced = torch.jit.trace(served, x)
    assert torch.equal(traced(x), served(x))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(x), served(x))
        assert torch.allclose(served(x), densify(served)(x), atol=1e-5)
    adam.load_state_dict(state)
    str(summary(sparse, adam)), str(adam), repr(sparse)
    before = sparse[1].nnz
    trim(sparse, 0.2, adam)
    assert sparse[1].nnz < before
    sparse[1].reset_parameters()

losing = model()
sparsify.sparsify(nn.Sequential(nn.Linear(2000, 2000), losing), density=0.01, skip="losing")
interchange.from_csr(interchange.to_csr(sparse[1]))
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
sparse, adam = sparsify.sparsify(dense := model(), torch.optim.Adam(dense.parameters()), 0.3, steps=6)
train(DistributedDataParallel(sparse), adam)
distributed.destroy_process_group()
assert len(adam.history) > 0
for name in kernels.available():
    with kernels.use(name):
        train(sparse, adam, 1)
assert "torch_sparse" not in kernels.available()

layer = sparse[1]
for use in (lambda: layer.weight, lambda: kernels.use("torch_sparse").__enter__()):
    with pytest.raises(ModuleNotFoundError, match=r"must be installed .* got: No module named .* pip install"):
        use()
with pytest.raises(AttributeError, match="weight must be the layer's own"):
    layer.weight = torch.randn(24, 16)
with pytest.raises(ValueError, match="kernels must be one of"), kernels.use("fastest"):
    pass
"""


@pytest.mark.parametrize("missing", [("torch_sparse", "torch_scatter", "scipy"), ("torch_scatter",)])
def test_all_but_the_weight_and_its_kernels_do_without(missing, tmp_path):
    quiet("-c", WITHOUT.format(missing=missing) + EVERYTHING, folder=tmp_path)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            "raise OSError('undefined symbol: _ZN3c10')",
            "must be built for the torch .* OSError: undefined",
        ),
        (
            "raise RuntimeError('different CUDA versions')",
            "must be built for the torch .* RuntimeError: different",
        ),
        ("raise ImportError('Could not find module')", "must be built for the torch .* ImportError: Could not find"),
    ],
)
def test_one_that_was_built_for_another_torch_is_told_of_and_left_out(fault, told, tmp_path):
    (tmp_path / "torch_sparse.py").write_text(fault)
    command = f"""
import pytest, torch
from sparsify import SparseLinear, kernels
layer = SparseLinear(4, 3, 0.5)
layer(torch.randn(2, 4)).sum().backward()
assert "torch_sparse" not in kernels.available()
for use in (lambda: layer.weight, lambda: kernels.use("torch_sparse").__enter__()):
    with pytest.raises(ImportError, match={told!r}):
        use()
"""
    quiet("-c", "import sys; sys.path.insert(0, '')\n" + command, folder=tmp_path)


def test_a_process_that_was_asked_for_it_says_at_once_that_it_is_missing(tmp_path):
    (tmp_path / "torch_sparse.py").write_text("import nowhere")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "SPARSIFY_KERNELS": "torch_sparse"}
    command = [sys.executable, "-c", "import sparsify"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode
    assert "must be installed" in done.stderr
    assert "No module named 'nowhere'" in done.stderr
