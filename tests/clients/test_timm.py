"""timm: real models, random weights: transformers of tiny configurations, convolutional networks of their own sizes."""

import copy
import math
from functools import partial

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

from sparsify import SET, RigL, SparseConv2d, SparseLinear, densify, fuse, plan, sparsify, summary
from tests.support.comparing import assert_same

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_classes": 3}
MODELS = {
    "ViT": lambda: VisionTransformer(**SIZES, depth=2, num_heads=4),
    "MLP-Mixer": lambda: MlpMixer(**SIZES, num_blocks=2),
}
LAYERS = 8  # sparse layers of each


def make(name, seed=0):
    torch.manual_seed(seed)
    model = MODELS[name]()
    optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=0.01)
    return sparsify(model, optimizer, 0.3, evolution=SET(interval=5), skip=["head"], seed=seed)


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_evolves_evaluates_saves_and_loads(name, tmp_path):
    model, optimizer = make(name)
    losses = train(model, optimizer, 20)
    assert losses[-1] < 0.7 * losses[0]
    assert len(summary(model).sparse) == LAYERS
    assert [record.step for record in optimizer.history] == [5, 10, 15, 20]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), densify(model)(images), atol=1e-5, rtol=1e-4)

    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, resumed = make(name, seed=1)
    other.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint["optimizer"])
    train(model, optimizer, 6)
    train(other, resumed, 6)
    assert_same(other.state_dict(), model.state_dict())


def test_convolutions_and_position_embeddings_are_reported():
    rows = {row.name: row for row in plan(MODELS["ViT"](), 0.3).dense}
    assert rows["patch_embed.proj"].kind == "Conv2d"
    assert rows["patch_embed.proj"].reason == "kinds=(nn.Linear, nn.Conv2d) makes it sparse"
    assert rows[""].reason == "only linear layers and convolutions become sparse"


BOTH = (nn.Linear, nn.Conv2d)
PLAIN = [8, "M", 16, "M", 32, 32, "M", 32, "M"]
NETWORKS = {
    "resnet18": (partial(timm.create_model, "resnet18", num_classes=4), "1"),
    "resnet50": (partial(timm.create_model, "resnet50", num_classes=4), "1"),
    "mobilenetv2": (partial(timm.create_model, "mobilenetv2_100", num_classes=4), "depthwise, 1"),
    "efficientnet_b0": (partial(timm.create_model, "efficientnet_b0", num_classes=4), "depthwise, 1"),
    "convnext_tiny": (partial(timm.create_model, "convnext_tiny", num_classes=4), "depthwise, 1"),
    "VGG-like": (lambda: VGG(PLAIN, num_classes=4, mlp_ratio=1 / 64, norm_layer=nn.BatchNorm2d), "1"),
}
"""Each network, and why some of its layers stay dense at density 0.1."""

REASONS = {"it is depthwise: each of its filters reads a single channel": "depthwise", "its density is 1": "1"}


def convolutional(name, evolution, seed=0):
    torch.manual_seed(seed)
    model = NETWORKS[name][0]()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return sparsify(model, optimizer, 0.1, kinds=BOTH, evolution=evolution, seed=seed)


def go(model, optimizer, steps):
    """Of few or small images, the last batch norms have so little to go by that losses rise and fall by chance."""
    images, losses = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(5)), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(images), torch.arange(16) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NETWORKS)
def test_a_convolutional_network_trains_evolves_evaluates_saves_loads_resumes_and_becomes_dense(name, tmp_path):
    evolution = RigL(interval=2) if name in ("resnet18", "mobilenetv2", "VGG-like") else SET(interval=2)
    planned = plan(NETWORKS[name][0](), 0.1, kinds=BOTH)
    assert {REASONS[row.reason] for row in planned.dense} == set(NETWORKS[name][1].split(", "))
    model, optimizer = convolutional(name, evolution)
    assert [(row.name, row.nnz) for row in summary(model).sparse] == [(row.name, row.nnz) for row in planned.sparse]
    assert sum(row.nnz for row in planned.layers if row.shares) == pytest.approx(
        0.1 * sum(math.prod(row.shape) for row in planned.layers if row.shares),
        rel=1e-4,
    )
    assert any(isinstance(module, SparseConv2d) for module in model.modules())
    losses = go(model, optimizer, 5)
    assert losses[-1] < losses[0]
    assert [record.step for record in optimizer.history] == [2, 4]
    exact, images = copy.deepcopy(model).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        dense, fused, expected = densify(exact), fuse(exact), exact(images)
        assert not any(isinstance(module, (SparseLinear, SparseConv2d)) for module in dense.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        for other in dense, fused:
            torch.testing.assert_close(other(images), expected)

    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, resumed = convolutional(name, evolution, seed=1)
    other.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint["optimizer"])
    assert go(model, optimizer, 1) == go(other, resumed, 1)
    assert len(resumed.history) == 3
    assert_same(other.state_dict(), model.state_dict())
