"""Lightning: the module sparsifies in `__init__`, so that its layers are sparse when a checkpoint's weights come."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from sparsify import sparsify
from tests.support import plain_loop
from tests.support.averages import DenseAverage
from tests.support.comparing import assert_same
from tests.support.plain_loop import ACCUMULATED, CLIP, EPOCHS, EVOLUTIONS, annealed, dataset

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty"),  # what resuming means
]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


def sparse_pair(seed, evolution=EVOLUTIONS["SET"]):
    model = network(seed)
    return sparsify(model, torch.optim.AdamW(model.parameters(), lr=0.01), density=0.3, evolution=evolution)


def loader():
    data = dataset()
    return DataLoader(data, batch_size=8, sampler=DistributedSampler(data, 1, 0))  # shuffles by epoch


class Automatic(lightning.LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, seed=1, evolution=EVOLUTIONS["SET"]):
        super().__init__()
        self.model, self.optimizer = sparse_pair(seed, evolution)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return F.cross_entropy(self.model(inputs).float(), labels)

    def configure_optimizers(self):
        scheduler = {"scheduler": annealed(self.optimizer), "interval": "step"}
        return {"optimizer": self.optimizer, "lr_scheduler": scheduler}


class Manual(Automatic):
    """The same by manual optimisation."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / ACCUMULATED)
        if (batch_idx + 1) % ACCUMULATED == 0 or self.trainer.is_last_batch:
            self.clip_gradients(optimizer, CLIP, "norm")
            optimizer.step()
            self.lr_schedulers().step()
            optimizer.zero_grad()


def fit(module, folder, ckpt_path=None, **options):
    if module.automatic_optimization:
        options |= {"accumulate_grad_batches": ACCUMULATED, "gradient_clip_val": CLIP}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    return module.model.state_dict(), module.optimizer.state_dict(), scheduler.state_dict()


@pytest.mark.parametrize("kind", [Automatic, Manual])
@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trains_as_the_plain_loop_does_with_accumulation_clipping_and_scheduler(kind, evolution, precision, tmp_path):
    trained = fit(kind(1, evolution), tmp_path, precision=precision)

    *states, rates = plain_loop.train(*sparse_pair(1, evolution), loader(), precision == "bf16-mixed")
    assert_same(trained[:2], tuple(states))
    assert trained[2]["_last_lr"] == rates


@pytest.mark.parametrize("kind", [Automatic, Manual])
@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
def test_training_resumed_from_a_model_checkpoint_is_bit_exact(kind, evolution, tmp_path):
    straight = fit(kind(1, evolution), tmp_path)
    module = kind(2, evolution)
    resumed = fit(module, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert module.trainer.global_step == 9
    assert [record.step for record in module.optimizer.history] == [2, 4, 6, 8]
    assert_same(resumed, straight)


def test_load_from_checkpoint_takes_over_the_topology(tmp_path):
    module = Automatic(1)
    trained, _, _ = fit(module, tmp_path)
    loaded = Automatic.load_from_checkpoint(tmp_path / "epoch=2.ckpt", seed=2)
    assert_same(loaded.model.state_dict(), trained)


def test_the_best_checkpoint_is_tested_with_its_topology(tmp_path):
    class Measured(Automatic):
        def validation_step(self, batch, batch_idx):
            self.log("loss", self.training_step(batch, batch_idx))

        test_step = validation_step

    # What is worst counts as best here: the first epoch, whose topology is not the last one's.
    best = ModelCheckpoint(tmp_path, monitor="loss", mode="max", filename="{epoch}")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=[best], **options)
    trainer.fit(Measured(), loader(), loader())
    assert best.best_model_path == str(tmp_path / "epoch=0.ckpt")
    tested = Measured(2)
    (measured,) = trainer.test(tested, loader(), ckpt_path="best", weights_only=True, verbose=False)
    assert measured["loss"] == pytest.approx(best.best_model_score.item(), rel=1e-5)


def test_fabric_resumes_bit_for_bit(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", precision="bf16-mixed")

    def train(model, optimizer):
        for inputs, labels in loader():
            fabric.backward(F.cross_entropy(model(inputs), labels))
            fabric.clip_gradients(model, optimizer, max_norm=CLIP)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict(), optimizer.state_dict()

    model, optimizer = fabric.setup(*sparse_pair(1))
    train(model, optimizer)
    fabric.save(tmp_path / "checkpoint.ckpt", {"model": model, "optimizer": optimizer})
    resumed = dict(zip(("model", "optimizer"), fabric.setup(*sparse_pair(2)), strict=True))
    fabric.load(tmp_path / "checkpoint.ckpt", resumed)
    assert_same(train(**resumed), train(model, optimizer))
    assert [record.step for record in optimizer.history] == list(range(2, 21, 2))


class WithoutScheduler(Automatic):
    def configure_optimizers(self):
        return self.optimizer


def averaged(callback):
    module = WithoutScheduler()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = {"callbacks": [callback], "enable_checkpointing": False}
    lightning.Trainer(accelerator="cpu", max_epochs=4, **callbacks, **options).fit(module, loader())
    assert len(module.optimizer.history) == 20
    return module


def test_stochastic_weight_averaging_that_begins_after_evolutions_is_right():
    averages, active = [], []

    class Watched(StochasticWeightAveraging):
        @staticmethod
        def update_parameters(average, module, *rest):
            averages.append(module.model[0].to_dense().detach().clone())
            StochasticWeightAveraging.update_parameters(average, module, *rest)

        def on_train_batch_end(self, trainer, pl_module, *_):
            if averages:
                active.append(set(pl_module.model[0].flat().tolist()))

    layer = averaged(Watched(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)).model[0]
    always = sorted(set.intersection(*active))
    assert len(averages) >= 2
    assert 5 < len(always) < layer.nnz
    mean = torch.stack(averages).mean(0).flatten()[always]
    torch.testing.assert_close(layer.to_dense().flatten()[always], mean)


def test_exponential_averages_across_evolutions_are_those_of_the_dense_weights():
    class Watched(EMAWeightAveraging):
        twin = None

        def on_train_batch_end(self, trainer, pl_module, *rest):
            before = self._latest_update_step
            super().on_train_batch_end(trainer, pl_module, *rest)
            if self._latest_update_step != before:
                self.twin = self.twin or DenseAverage(pl_module.model, 0.9)
                self.twin.update(pl_module.model)

    callback = Watched(decay=0.9, use_buffers=False)
    module = averaged(callback)
    for i, mean in zip((0, 2), callback.twin.means, strict=True):
        torch.testing.assert_close(module.model[i].to_dense(), mean)
