"""Lightning: the LightningModule sparsifies in `__init__`, before a checkpoint is loaded, and hands out the optimizer."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sparsify import SET, GraNet, sparsify

from .conftest import assert_same

ACCUMULATED, CLIP = 4, 0.5
STEPS_PER_EPOCH = 3  # ten batches: four, four and the two that are left
EVOLUTIONS = {"SET": SET(2), "GraNet": GraNet(until=8, prune_until=6, interval=2, start_density=0.8)}


def dataset():
    inputs = torch.randn(80, 12, generator=torch.Generator().manual_seed(7))
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


def annealed(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * STEPS_PER_EPOCH)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


class Classifier(lightning.LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, seed=1, evolution=EVOLUTIONS["SET"]):
        super().__init__()
        self.model = network(seed)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.model, self.optimizer = sparsify(self.model, optimizer, density=0.3, evolution=evolution)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs).float(), labels)

    def configure_optimizers(self):
        scheduler = {"scheduler": annealed(self.optimizer), "interval": "step"}
        return {"optimizer": self.optimizer, "lr_scheduler": scheduler}


class Manual(Classifier):
    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / ACCUMULATED)
        if (batch_idx + 1) % ACCUMULATED == 0 or self.trainer.is_last_batch:
            self.clip_gradients(optimizer, CLIP, "norm")
            optimizer.step()
            self.lr_schedulers().step()
            optimizer.zero_grad()


def loader():
    data = dataset()
    return DataLoader(data, batch_size=8, sampler=DistributedSampler(data, 1, 0))

def fit(module, folder, epochs=3, ckpt_path=None, **options):
    if module.automatic_optimization:
        options = {"accumulate_grad_batches": ACCUMULATED, "gradient_clip_val": CLIP, **options}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)], **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return module.state_dict(), module.optimizer.state_dict(), module.trainer.lr_scheduler_configs[0].scheduler.state_dict()

def test_x(tmp_path):
    a = fit(Classifier(), tmp_path / "a")
    import os; print(os.listdir(tmp_path/"a"))
    m = Classifier(2)
    b = fit(m, tmp_path / "b", ckpt_path=tmp_path / "a/epoch=0.ckpt")
    print([r.step for r in m.optimizer.history])
    assert_same(a, b)
    c = fit(Manual(), tmp_path / "c")
    m = Manual(2)
    d = fit(m, tmp_path / "d", ckpt_path=tmp_path / "c/epoch=0.ckpt")
    assert_same(c, d)
    assert_same(c, a)
