"""torch.onnx exports dense copies and sparse models alike; onnxruntime computes what they compute."""

import math

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from sparsify import SET, densify, sparsify, trim
from tests.support.models import mlp

# torch's own exporter, about itself
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def trained(*sizes, dtype=torch.float32):
    model = mlp(*sizes, dtype=dtype)
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters(), 0.01), 0.2, evolution=SET(interval=2))
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, sizes[0], dtype=dtype)).square().sum().backward()
        optimizer.step()
    return model.eval()


def exported(model, *inputs, path, dynamic):
    program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs):
        feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (densify, torch.float32),
        (lambda model: model, torch.float32),
        (lambda model: model, torch.float64),
        (lambda model: trim(model, 0.5), torch.float32),
    ],
)
def test_onnxruntime_gives_the_same_for_batches_of_any_size(form, dtype, tmp_path):
    model = trained(12, 16, 4, dtype=dtype)
    form = form(model)
    run = exported(form, torch.randn(5, 12, dtype=dtype), path=tmp_path / "model.onnx", dynamic=({0: "batch"},))
    for size in (1, 5, 40):
        x = torch.randn(size, 12, dtype=dtype)
        torch.testing.assert_close(run(x), model(x).detach())


def test_layers_without_bias_of_any_rank(tmp_path):
    model = nn.Sequential(nn.Linear(12, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    model, _ = sparsify(model, None, 0.3)
    run = exported(model.eval(), torch.randn(2, 3, 12), path=tmp_path / "model.onnx", dynamic=({0: "batch"},))
    x = torch.randn(6, 3, 12)
    torch.testing.assert_close(run(x), model(x).detach())


def test_a_transformer_encoder(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model, _ = sparsify(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), None, 0.3)
    x = torch.randn(3, 5, 16)
    run = exported(model.eval(), x, path=tmp_path / "model.onnx", dynamic=None)
    torch.testing.assert_close(run(x), model(x).detach())


def test_the_file_of_a_sparse_model_holds_its_connections_only(tmp_path):
    layer, _ = sparsify(nn.Linear(1200, 1200, bias=False), None, 0.02)
    kept = {}
    for name, form in {"sparse": layer.eval(), "dense": densify(layer)}.items():
        exported(form, torch.randn(2, 1200), path=tmp_path / name, dynamic=None)
        kept[name] = sum(math.prod(weight.dims) for weight in onnx.load(tmp_path / name).graph.initializer)
    assert kept["dense"] >= 1200 * 1200
    assert kept["sparse"] < 4 * layer.nnz + 100  # values, col, csc_row, csc_order
