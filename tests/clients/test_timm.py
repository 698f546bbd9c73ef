"""timm: real models, tiny configurations, random weights."""

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

from sparsify import SET, densify, plan, sparsify, summary
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
