"""torch.compile and torch.export: one graph, whatever evolution does."""

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from sparsify import GMP, SET, RigL, SparseLinear, densify, kernels, sparsify
from tests.support.marks import EACH, TORCHS_OWN
from tests.support.models import mlp

pytestmark = TORCHS_OWN


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


@pytest.fixture
def counter():
    return CompileCounterWithBackend("aot_eager")


def pair(evolution=SET(interval=1)):  # noqa: B008
    torch.manual_seed(0)
    model = mlp(12, 16, 4, dtype=torch.float64)
    return sparsify(model, torch.optim.Adam(model.parameters(), 0.01), 0.35, evolution=evolution, seed=3)


def batch(number, size=8):
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(size, 12, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (size,), generator=generator)


def loss_of(model):
    return lambda inputs, labels: F.cross_entropy(model(inputs), labels)


def train(optimizer, loss, number):
    optimizer.zero_grad()
    value = loss(*batch(number))
    value.backward()
    optimizer.step()
    return value


def check_training(evolution, backend, steps=6):
    """Model and loss in one graph, beside the same training without a compiler."""
    model, optimizer = pair(evolution)
    eager_model, eager_optimizer = pair(evolution)
    compiled = torch.compile(loss_of(model), fullgraph=True, backend=backend)
    for number in range(steps):
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            loss = train(optimizer, compiled, number)
        torch.testing.assert_close(loss, train(eager_optimizer, loss_of(eager_model), number))
        for i in (0, 2):
            assert torch.equal(model[i].flat(), eager_model[i].flat())
            torch.testing.assert_close(model[i].values, eager_model[i].values)
            torch.testing.assert_close(model[i].values.grad, eager_model[i].values.grad)
    assert len(optimizer.history) == steps


@pytest.mark.parametrize("evolution", [SET(interval=1), RigL(interval=1)])
@pytest.mark.parametrize("name", EACH)
def test_training_is_one_graph_and_none_is_compiled_again_after_evolutions(name, evolution, counter):
    with kernels.use(name):
        check_training(evolution, counter)
    assert counter.frame_count == 1


@pytest.mark.parametrize("evolution", [SET(interval=1), RigL(interval=1)])
def test_training_with_generated_code(evolution, monkeypatch):
    monkeypatch.setenv("CI", "true")  # there Inductor refuses to call an operator that has a decomposition
    with torch._inductor.config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        check_training(evolution, "inductor")


def test_evaluation_follows_training_without_another_graph(counter):
    model, optimizer = pair()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    inputs, _ = batch(0)
    for no_grad, graphs in (torch.no_grad, 1), (torch.inference_mode, 2):
        for number in range(3):
            train(optimizer, loss_of(model), number)
            with no_grad():
                torch.testing.assert_close(compiled(inputs), model(inputs))
        assert counter.frame_count == graphs
    model.load_state_dict(pair()[0].state_dict())  # as many connections, elsewhere
    with torch.inference_mode():
        torch.testing.assert_close(compiled(inputs), model(inputs))
    assert counter.frame_count == 2


def test_batches_of_any_size_share_a_graph(counter):
    model, optimizer = pair()
    compiled = torch.compile(loss_of(model), fullgraph=True, dynamic=True, backend=counter)
    for size in (8, 5, 64, 3):
        loss, expected = compiled(*batch(0, size)), loss_of(model)(*batch(0, size))
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected)]
        torch.testing.assert_close(*gradients)
        train(optimizer, loss_of(model), size)
    assert counter.frame_count == 1


def test_a_model_compiled_before_sparsify(counter):
    model = mlp(12, 16, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    compiled, optimizer = sparsify(compiled, optimizer, 0.35, evolution=SET(interval=1))
    assert isinstance(model[0], SparseLinear)
    for number in range(3):
        train(optimizer, loss_of(compiled), number)
    assert counter.frame_count == 1
    assert set(optimizer.history[-1].grown) == {"_orig_mod.0", "_orig_mod.2"}
    inputs, _ = batch(0)
    torch.testing.assert_close(densify(compiled)(inputs), model(inputs))


def test_a_compiled_optimizer_step_is_one_graph_and_evolution_none(counter):
    model, optimizer = pair(RigL(interval=2))
    eager_model, eager_optimizer = pair(RigL(interval=2))
    step = torch.compile(lambda: optimizer.step(), backend=counter)
    for number in range(6):
        optimizer.zero_grad()
        loss_of(model)(*batch(number)).backward()
        step()
        train(eager_optimizer, loss_of(eager_model), number)
    assert [record.step for record in optimizer.history] == [2, 4, 6]
    assert counter.frame_count == 1
    close = {"rtol": 1e-5, "atol": 1e-5}  # compiled, Adam corrects its bias in float32
    torch.testing.assert_close(model.state_dict(), eager_model.state_dict(), **close)


def test_while_pruning_two_graphs_serve_where_shapes_may_be_dynamic(counter):
    """Otherwise PyTorch compiles for each number of connections, and after eight of them gives up."""
    model, optimizer = pair(GMP(until=20, interval=2))
    free = {"force_parameter_static_shapes": False, "force_nn_module_property_static_shapes": False}
    with torch._dynamo.config.patch(free):
        compiled = torch.compile(loss_of(model), fullgraph=True, backend=counter)
        counts = set()
        for number in range(24):
            expected = loss_of(model)(*batch(number))
            torch.testing.assert_close(train(optimizer, compiled, number), expected)
            counts.add(model[0].nnz)
    assert len(counts) > 8
    assert counter.frame_count == 2


def test_exported_saved_and_loaded_with_a_free_batch_size():
    model, optimizer = pair()
    for number in range(3):
        train(optimizer, loss_of(model), number)
    model.eval()
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (batch(0)[0],), dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for size in (2, 9, 100):
        inputs, _ = batch(1, size)
        expected = model(inputs)
        assert torch.equal(program.module()(inputs), expected)
        assert torch.equal(loaded.module()(inputs), expected)
    assert set(loaded.state_dict) == set(model.state_dict())


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 1)
    return sparsify(model, torch.optim.Adam(model.parameters(), 0.01), 0.3, evolution=RigL(interval=1))


def test_sparse_attention_trains_in_one_graph(counter):
    model, optimizer = encoder()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(3):
        x = torch.randn(3, 5, 16, dtype=torch.float64)
        optimizer.zero_grad()
        out, expected = compiled(x), model(x)
        torch.testing.assert_close(out, expected)
        out.square().mean().backward()
        optimizer.step()
    assert len(optimizer.history[-1].grown) == 6
    assert counter.frame_count == 1


def test_sparse_attention_exported_with_a_free_batch_size():
    model, _ = encoder()
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model.eval(), (torch.randn(3, 5, 16, dtype=torch.float64),), dynamic_shapes=sizes)
    x = torch.randn(7, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(program.module()(x), model(x))


def test_exported_layers_of_any_rank():
    layer = SparseLinear(12, 5, 0.3)
    program = torch.export.export(nn.Sequential(layer), (torch.randn(2, 3, 12),))
    x = torch.randn(2, 3, 12)
    assert torch.equal(program.module()(x), layer(x))
