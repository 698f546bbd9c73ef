"""To and from dense models, other sparse formats, and checkpoints in files."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from sparsify import GMP, SET, SparseLinear, SparseOptimizer, densify, sparsify, trim
from sparsify.interchange import from_csr, from_scipy, to_csr, to_scipy
from tests.support.comparing import assert_same
from tests.support.models import mlp

FORMATS = ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"]


def trained(evolution=SET(interval=3), build=lambda: mlp(12, 16, 4)):  # noqa: B008
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=evolution, seed=1)
    train(model, optimizer, 10)
    return model, optimizer


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(8, 12)) - 1).square().mean().backward()
        optimizer.step()


def layers():
    """Any layer: its sizes, density, bias, dtype and seed."""
    sizes = st.integers(1, 30)
    dtypes = st.sampled_from([torch.float32, torch.float64])
    return st.tuples(sizes, sizes, st.floats(0.001, 1), st.booleans(), dtypes, st.integers(0, 2**31)).map(made)


def made(drawn):
    ins, outs, density, bias, dtype, seed = drawn
    generator = torch.Generator().manual_seed(seed)
    return SparseLinear(ins, outs, density, bias, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("there", "back"), [(to_csr, from_csr), (to_scipy, from_scipy)])
@given(layer=layers())
@settings(deadline=None, max_examples=50)
def test_there_and_back_is_the_same_layer(there, back, layer):
    again = back(there(layer), layer.bias)
    assert_same(again.state_dict(), layer.state_dict())
    assert_same(dict(again.named_buffers()), dict(layer.named_buffers()))
    x = torch.randn(5, layer.in_features, dtype=layer.values.dtype)
    assert torch.equal(again(x), layer(x))


@given(layer=layers())
@settings(deadline=None, max_examples=50)
def test_products_are_those_of_scipy_and_of_torch(layer):
    x = torch.randn(5, layer.in_features, dtype=layer.values.dtype)
    offsets = 0 if layer.bias is None else layer.bias
    by_scipy = torch.from_numpy((to_scipy(layer) @ x.numpy().T).T)
    torch.testing.assert_close(by_scipy + offsets, layer(x))
    torch.testing.assert_close((to_csr(layer) @ x.t()).t() + offsets, layer(x))


@pytest.mark.parametrize("there", [to_csr, to_scipy])
def test_what_comes_out_is_a_copy(there):
    layer = SparseLinear(20, 12, 0.3)
    before = copy.deepcopy(layer.state_dict())
    matrix = there(layer)
    if there is to_csr:
        assert not matrix.requires_grad
        parts = matrix.values(), matrix.crow_indices(), matrix.col_indices()
    else:
        parts = map(torch.from_numpy, (matrix.data, matrix.indptr, matrix.indices))
    for part in parts:
        part.zero_()
    assert_same(layer.state_dict(), before)


@pytest.mark.parametrize("back", [from_csr, from_scipy])
def test_what_goes_in_is_copied_and_trains(back):
    source = SparseLinear(12, 4, 0.3)
    matrix = (to_csr if back is from_csr else to_scipy)(source)
    data, bias = matrix.values() if back is from_csr else matrix.data, torch.ones(4)
    layer = back(matrix, bias)
    train(layer, torch.optim.SGD(layer.parameters(), 0.1), 1)
    assert not torch.equal(layer.values, source.values)
    assert torch.equal(torch.as_tensor(data), source.values)
    assert torch.equal(bias, torch.ones(4))
    assert layer.bias.requires_grad


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", ["array", "matrix"])
def test_every_format_of_scipy_comes_in(kind, family):
    dense = np.zeros((4, 6), np.float32)
    dense[[0, 0, 2, 3], [1, 4, 0, 5]] = [1, -2, 3, 4]
    layer = from_scipy(getattr(scipy.sparse, f"{kind}_{family}")(dense), np.arange(4))
    assert torch.equal(layer.to_dense(), torch.from_numpy(dense))
    assert torch.equal(layer.bias, torch.arange(4.0))


def test_explicit_zeros_are_connections_and_duplicates_are_summed_in_order():
    data, row, col = np.array([5.0, 0.0, 2.0, 3.0]), [1, 0, 1, 0], [2, 1, 2, 0]
    layer = from_scipy(scipy.sparse.coo_array((data, (row, col)), (2, 3)))
    assert layer.flat().tolist() == [0, 1, 5]
    assert layer.values.tolist() == [3, 0, 7]
    unsorted = scipy.sparse.csr_array((data, [2, 0, 1, 1], [0, 2, 4]), (2, 3))
    assert from_scipy(unsorted).to_dense().tolist() == [[0, 0, 5], [0, 5, 0]]
    assert unsorted.indices.tolist() == [2, 0, 1, 1]  # as it was
    csr = torch.sparse_csr_tensor([0, 2, 3], [0, 1, 2], [3.0, 0.0, 7.0], (2, 3), dtype=torch.float64)
    assert_same(from_csr(csr).state_dict(), layer.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_torch_and_is_float32_in_scipy(dtype):
    layer = SparseLinear(20, 12, 0.3).to(dtype)
    assert_same(from_csr(to_csr(layer), layer.bias).state_dict(), layer.state_dict())
    matrix = to_scipy(layer)
    assert matrix.dtype == np.float32
    assert torch.equal(torch.from_numpy(matrix.toarray()).to(dtype), layer.to_dense())


def csr(crow, col, values=(1.0, 2.0), shape=(2, 3)):
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (lambda: torch.eye(3), TypeError, r"matrix must be a torch.sparse_csr tensor, got torch.strided. Use matrix"),
        (lambda: torch.eye(3).to_sparse(), TypeError, "got torch.sparse_coo"),
        (lambda: scipy.sparse.eye_array(3), TypeError, "got dia_array"),
        (lambda: csr([0, 1, 2], [0, 1], [1, 2]), TypeError, "matrix must be of torch.float32, .* got torch.int64"),
        (lambda: csr([0, 1, 2], [0, 1], [1j, 2]), TypeError, "got torch.complex64"),
        (lambda: torch.ones(2, 2, 3).to_sparse_csr(), ValueError, r"must be \(out_features, in_features\), got \(2, 2"),
        (lambda: torch.zeros(2, 3).to_sparse_csr(), ValueError, r"at least one element, got none in \(2, 3\)"),
        (lambda: csr([0, 2, 2], [1, 0]), ValueError, "col must rise strictly within each row: .*sorted and unique"),
        (lambda: csr([0, 2, 2], [1, 1]), ValueError, "col must rise strictly"),
        (lambda: csr([0, 1, 2], [0, 3]), ValueError, r"col must be in \[0, 3\)"),
        (lambda: csr([0, 2, 1], [0, 1]), ValueError, "crow must rise"),
    ],
)
def test_from_csr_names_what_is_wrong(matrix, error, message):
    with pytest.raises(error, match=message):
        from_csr(matrix())


def corrupt(kind, **parts):
    matrix = getattr(scipy.sparse, f"{kind}_array")(np.eye(3))
    for name, index in parts.items():
        setattr(matrix, name, np.array(index, dtype=np.int32))
    return matrix


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (lambda: np.eye(3), TypeError, "matrix must be a SciPy sparse array, got ndarray"),
        (lambda: torch.eye(3).to_sparse_csr(), TypeError, "got Tensor"),
        (lambda: scipy.sparse.eye_array(3, dtype=np.int64), TypeError, "float32 or float64, got int64. Use matrix.ast"),
        (lambda: scipy.sparse.csr_array((2, 3)), ValueError, r"at least one element, got none in \(2, 3\)"),
        (lambda: scipy.sparse.csr_array(np.ones(3)), ValueError, r"must be \(out_features, in_features\), got \(3,\)"),
        (lambda: scipy.sparse.coo_array(np.ones((2, 2, 2))), ValueError, "3D"),
        (lambda: corrupt("csr", indices=[0, 1, 10**6]), ValueError, "indices must be < 3"),
        (lambda: corrupt("csc", indices=[0, -1, 2]), ValueError, "indices must be >= 0"),
        (lambda: corrupt("csr", indptr=[0, 9, -9, 3]), ValueError, "indptr must be a non-decreasing"),
    ],
)
def test_from_scipy_names_what_is_wrong(matrix, error, message):
    with pytest.raises(error, match=message):
        from_scipy(matrix())


def test_a_bias_of_another_length_is_refused():
    layer = SparseLinear(20, 12, 0.3)
    with pytest.raises(ValueError, match=r"bias must be \(12,\), got \(11,\)"):
        from_csr(to_csr(layer), torch.ones(11))


def test_layers_from_matrices_make_a_model_that_evolves():
    pruned = scipy.sparse.random_array((16, 12), density=0.3, dtype=np.float32, rng=np.random.default_rng(0))
    model = nn.Sequential(from_scipy(pruned, np.zeros(16)), nn.Tanh(), nn.Linear(16, 4))
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), 0.1), {"0": model[0]}, SET(interval=2))
    train(model, optimizer, 4)
    assert model[0].nnz == pruned.nnz
    assert [record.step for record in optimizer.history] == [2, 4]


def test_densify_gives_ordinary_layers_and_leaves_the_sparse_model_training():
    model, optimizer = trained()
    dense, x = densify(model), torch.randn(8, 12)
    assert list(dense.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert type(dense[0]) is nn.Linear
    torch.testing.assert_close(dense(x), model(x))
    assert isinstance(model[0], SparseLinear)
    train(model, optimizer, 1)
    assert not torch.allclose(dense(x), model(x))
    fresh, _ = sparsify(dense, None, 0.3, start="magnitude")
    assert isinstance(fresh[0], SparseLinear)


def test_a_dense_checkpoint_loads_into_a_sparse_model_at_its_topology():
    model = mlp(12, 16, 4)
    state = copy.deepcopy(model.state_dict())
    sparse, _ = sparsify(model, None, 0.3)
    flat = sparse[0].flat().clone()
    with pytest.warns(UserWarning, match=r"\d% of their magnitude was left out"):
        sparse.load_state_dict(state)
    assert torch.equal(sparse[0].flat(), flat)
    assert torch.equal(sparse[0].values, state["0.weight"].flatten()[flat])


def test_a_densified_checkpoint_loads_into_the_plain_dense_model():
    model, _ = trained()
    plain, x = mlp(12, 16, 4), torch.randn(8, 12)
    plain.load_state_dict(densify(model).state_dict(), strict=True)
    torch.testing.assert_close(plain(x), model(x))
    again, _ = sparsify(mlp(12, 16, 4), None, 0.3, seed=2)
    again.load_state_dict(model.state_dict())
    again.load_state_dict(plain.state_dict())  # dense, into the topology it had: nothing is lost on the way
    assert_same(again.state_dict(), model.state_dict())


def by_torch_save(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def by_safetensors(state, path):
    save_file(state, path)
    return load_file(path)


@pytest.mark.parametrize("through", [by_torch_save, by_safetensors, lambda state, path: state])
@pytest.mark.parametrize("change", [lambda m: m, lambda m: trim(m, 0.3), lambda m: m.double()])
@pytest.mark.parametrize("density", [0.3, 0.1])
def test_a_trained_model_is_served_without_an_optimizer(through, change, density, tmp_path):
    model = change(trained()[0]).eval()
    served, _ = sparsify(mlp(12, 16, 4, dtype=model[0].values.dtype), None, density, seed=7)
    assert not torch.equal(served[0].flat(), model[0].flat())
    served.load_state_dict(through(model.state_dict(), tmp_path / "weights"))
    served.eval()
    assert_same(served.state_dict(), model.state_dict())
    with torch.no_grad():
        for batch in (1, 8):
            x = torch.randn(batch, 12, dtype=model[0].values.dtype)
            assert torch.equal(served(x), model(x))


def test_a_model_in_the_middle_of_pruning_is_served():
    model, _ = trained(GMP(until=30, interval=3))
    served, _ = sparsify(mlp(12, 16, 4), None, 0.3)
    assert served[0].nnz < model[0].nnz
    served.load_state_dict(model.state_dict())
    x = torch.randn(8, 12)
    assert torch.equal(served(x), model(x))


def test_a_dense_copy_loads_for_itself_while_its_model_is_there_and_when_it_is_gone():
    model, _ = trained()
    before, dense = copy.deepcopy(model.state_dict()), densify(model)
    dense[0].load_state_dict({"weight": torch.ones(16, 12), "bias": torch.ones(16)})
    assert torch.equal(dense[0].weight, torch.ones(16, 12))
    assert_same(model.state_dict(), before)
    del model
    gc.collect()
    dense[0].load_state_dict({"weight": torch.zeros(16, 12), "bias": torch.ones(16)})
    assert torch.equal(dense[0].weight, torch.zeros(16, 12))


def test_safetensors_save_model_and_load_model(tmp_path):
    model, _ = trained()
    save_model(model, tmp_path / "model.safetensors")
    served, _ = sparsify(mlp(12, 16, 4), None, 0.1)
    assert load_model(served, tmp_path / "model.safetensors") == (set(), [])
    assert_same(served.state_dict(), model.state_dict())
    x = torch.randn(8, 12)
    assert torch.equal(served(x), model(x))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [lambda model: pickle.loads(pickle.dumps(model)), through_torch_save])
@pytest.mark.parametrize("change", [lambda m: m, lambda m: trim(m, 0.3)])
def test_a_whole_model_is_pickled(through, change):
    model = change(trained()[0])
    again, x = through(model), torch.randn(8, 12)
    assert torch.equal(again(x), model(x))
    assert_same(dict(again.named_buffers()), dict(model.named_buffers()))
    train(again, torch.optim.SGD(again.parameters(), 0.1), 1)
    assert not torch.equal(again[0].values, model[0].values)
