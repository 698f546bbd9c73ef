"""The gate between Python and C."""

import ctypes
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from sparsify import SparseLinear
from sparsify._src import kernels, topology, vectors
from sparsify._src.native import library
from tests.support.marks import PATHS, needs_native


def fake():
    with FakeTensorMode():
        return torch.randn(4, 3)


def freed(offset=0):
    tensor = torch.randn(12 + offset)[offset:].view(4, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk():
    tensor = torch.randn(4, 3)
    tensor.untyped_storage().resize_(16)
    return tensor


NOT_PLAIN = {
    "fake": fake,
    "meta": lambda: torch.randn(4, 3, device="meta"),
    "a wrapper": lambda: TwoTensor(torch.randn(4, 3), torch.randn(4, 3)),
    "lazily negative": lambda: torch._neg_view(torch.randn(4, 3)),
    "not contiguous": lambda: torch.randn(3, 4).t(),
    "expanded": lambda: torch.randn(1, 3).expand(4, 3),
    "freed": freed,
    "freed, with an offset": lambda: freed(1 << 20),
    "shrunk": shrunk,
    "sparse": lambda: torch.randn(4, 3).to_sparse(),
    "CSR": lambda: torch.eye(4).to_sparse_csr(),
    "mkldnn": lambda: torch.randn(4, 3).to_mkldnn(),
    "zeros without memory": lambda: torch._efficientzerotensor((4, 3)),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_plain_memory_has_no_address(kind):
    tensor = NOT_PLAIN[kind]()
    with pytest.raises(
        (TypeError, RuntimeError),
        match=r"plain, contiguous memory of 48 bytes|do not have is_contiguous|Cannot access storage",
    ):
        library.address(tensor, 48, [])


def test_what_torch_func_wraps_has_no_address():
    def refused(x):
        with pytest.raises(
            (TypeError, RuntimeError), match=r"plain, contiguous memory of 4 bytes|Cannot access storage"
        ):
            library.address(x, 4, [])
        return x.sum()

    for transform in torch.func.functionalize, torch.func.vmap, torch.func.grad:
        transform(refused)(torch.randn(3))


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(4, 3), nn.Parameter(torch.randn(4, 3)), torch.randn(9, 3)[2:6], torch.arange(12), torch.zeros(0)],
)
def test_plain_memory_has_and_it_is_kept(tensor):
    held = []
    assert library.address(tensor, tensor.nbytes, held) == tensor.data_ptr()
    assert len(held) == 1
    with pytest.raises(TypeError, match="plain, contiguous memory of"):
        library.address(tensor, tensor.untyped_storage().nbytes() + 1, [])


@needs_native
def test_a_library_of_another_version_is_refused(monkeypatch):
    class Longer(library.Product):
        _fields_ = (("another", ctypes.c_int64),)

    monkeypatch.setattr(library, "Product", Longer)
    with pytest.raises(ImportError, match="reinstall sparsify"):
        library._load()


@needs_native
def test_a_library_that_does_not_tell_its_size_is_refused(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with pytest.raises(ImportError, match="same version as sparsify's Python files"):
        library._load()


@needs_native
@pytest.mark.parametrize("size", [0, 5])
def test_a_product_of_too_short_an_operand_is_refused(size):
    layer, x = SparseLinear(6, 8, 0.5), torch.randn(3, 6)
    values = layer.values.detach()
    with pytest.raises(TypeError, match="plain, contiguous memory"):
        kernels.native.forward(x, values, torch.zeros(size), layer.indices())
    with pytest.raises(TypeError, match="plain, contiguous memory"):
        kernels.native.forward(x, values[:size].clone(), layer.bias, layer.indices())
    with pytest.raises(TypeError, match="plain, contiguous memory"):
        kernels.native.backward(torch.randn(3, size), x, values, layer.indices(), (True, True, True))


@needs_native
@pytest.mark.parametrize("name", topology.Indices._fields)
@pytest.mark.parametrize("number", [-1, 10**6, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_no_product_leaves_its_arrays_whatever_the_indices_hold(batch, number, name):
    layer = SparseLinear(60, 50, 0.2)
    x, grad, values = torch.randn(batch, 60), torch.randn(batch, 50), layer.values.detach()
    good = topology.Indices(*(index.clone() for index in layer.indices()))
    for place in 0, len(getattr(good, name)) // 2, -1:
        bad = good._replace(**{name: getattr(good, name).clone()})
        getattr(bad, name)[place] = number
        read = {"forward": ("crow", "col"), "backward": ("ccol", "csc_row", "csc_order")}
        for direction, product in {
            "forward": lambda bad=bad: kernels.native.forward(x, values, layer.bias, bad),
            "backward": lambda bad=bad: kernels.native.backward(grad, x, values, bad, (True, True, True)),
        }.items():
            if name in read[direction]:
                with pytest.raises(ValueError, match="indices must be a topology"):
                    product()
            else:
                product()


@needs_native
def test_a_layer_whose_index_memory_was_replaced_unnoticed_is_refused():
    layer, x = SparseLinear(60, 50, 0.2), torch.randn(3, 60)
    layer.col.data = torch.full_like(layer.col, 10**6)
    with pytest.raises(ValueError, match="indices must be a topology"):
        layer(x)


@pytest.mark.parametrize("path", PATHS)
def test_topologies_that_are_none_are_refused_alike(path, monkeypatch):
    if path == "plain":
        monkeypatch.setattr(library, "LIBRARY", None)
    for flat in ([3, 3], [4, 1], [-1, 2], [0, 20]):
        with pytest.raises(ValueError, match="must be"):
            topology.index(torch.tensor(flat), (4, 5))
    for flat in (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1.0]), [1], torch.tensor([1], device="meta")):
        with pytest.raises(ValueError, match=r"flat must be an? (ordinary )?vector of int64"):
            topology.index(flat, (4, 5))


def test_digests_tell_topologies_apart_and_are_the_same_with_and_without_a_compiler(monkeypatch):
    flats = [vectors.sample(10_000, count, vectors.generator(count)) for count in range(0, 2000, 97)]
    flats += [flats[-1].clone().add_(1), torch.tensor([1, 7, 19]), torch.tensor([1, 8, 19])]
    found = [topology.digest(flat) for flat in flats]
    assert found[0] == (0, 0)
    assert found[-2] == (3, -5686210403429284644), "checkpoints of other machines hold such"
    assert len(set(found)) == len(flats)
    monkeypatch.setattr(library, "LIBRARY", None)
    assert [topology.digest(flat) for flat in flats] == found
    for digest, flat in zip(found, flats, strict=True):
        topology.check_digest("it", digest, (100, 101))
        assert digest[0] == len(flat)


SHARING = """
import os, re, torch


def runtimes():
    with open("/proc/self/maps") as maps:
        return {path for line in maps if re.search(r"lib(g|i|)omp\\b", path := line.rpartition(" ")[2])}


def threads():
    return len(os.listdir("/proc/self/task"))


before = runtimes()
assert before
from sparsify import SparseLinear
from sparsify._src.native import library

layer, x = SparseLinear(2000, 2000, 0.1), torch.randn(64, 2000)
with torch.no_grad():
    torch.set_num_threads(1)
    alone = threads()
    layer(x)
    assert threads() == alone, "one thread was asked for"
    torch.set_num_threads(3)
    alone = threads()
    layer(x)
    assert threads() == alone + 2, "three were"
    torch.randn(1000, 1000).exp_()
    assert threads() == alone + 2, "PyTorch's own work is done by the same"
assert runtimes() == before
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells")
def test_the_library_computes_with_pytorchs_openmp_runtime_and_its_threads():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SHARING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert b"libgomp.so" not in Path(find_spec("sparsify._src.native._compiled").origin).read_bytes()


@needs_native
def test_a_runtime_that_pytorch_keeps_to_itself_is_shared_and_a_missing_one_is_told_of(monkeypatch):
    opened, fails = [], ["library"]

    def dll(path, mode=None):
        opened.append((path, mode))
        if path in fails:
            if path == "library":
                fails.remove(path)
            raise OSError(f"{path}: undefined symbol: GOMP_parallel")
        return path

    monkeypatch.setattr(library.ctypes, "CDLL", dll)
    assert library._opened("library") == "library"
    assert opened == [("library", None), ("libgomp.so.1", ctypes.RTLD_GLOBAL), ("library", None)]
    fails += ["library", "libgomp.so.1"]
    with pytest.raises(ImportError, match=r"library must find its OpenMP functions .* GOMP_parallel"):
        library._opened("library")
