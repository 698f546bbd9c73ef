"""Lightning: the module sparsifies in `__init__`, so that its layers are sparse when a checkpoint's weights come."""

import copy
import csv
import pickle
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from sparsify import SET, sparsify, telemetry
from tests.support import plain_loop
from tests.support.averages import DenseAverage
from tests.support.comparing import assert_same
from tests.support.plain_loop import ACCUMULATED, CLIP, EPOCHS, EVOLUTIONS, STEPS_PER_EPOCH, annealed, dataset

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


def fit(module, folder, ckpt_path=None, callbacks=(), logger=False, **options):
    if module.automatic_optimization:
        options |= {"accumulate_grad_batches": ACCUMULATED, "gradient_clip_val": CLIP}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1), *callbacks],
        logger=logger,
        log_every_n_steps=1,
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


class Kept(Logger):
    """A logger that keeps what it is told of evolutions."""

    def __init__(self):
        super().__init__()
        self.found = []

    name = version = "kept"

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("sparsify") for name in metrics):
            self.found.append((step, dict(metrics)))


def expected(module):
    """Lightning counts the batches before that have stepped; by manual optimization all of them."""
    if module.automatic_optimization:
        counted = range(EPOCHS * STEPS_PER_EPOCH)
    else:
        counted = [10 * epoch + batch for epoch in range(EPOCHS) for batch in (3, 7, 9)]
    return [(counted[record.step - 1], telemetry.scalars(record)) for record in module.optimizer.history]


@pytest.mark.parametrize("kind", [Automatic, Manual])
@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
def test_loggers_get_each_record_once_at_their_step_and_after_resuming_too(kind, evolution, tmp_path):
    module, straight, other = kind(1, evolution), Kept(), Kept()
    fit(module, tmp_path, callbacks=[telemetry.lightning_callback()], logger=[straight, other])
    assert [record.step for record in module.optimizer.history] == [2, 4, 6, 8]
    assert straight.found == other.found == expected(module)
    resumed, logger = kind(2, evolution), Kept()
    callbacks = [telemetry.lightning_callback()]
    fit(resumed, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt", callbacks=callbacks, logger=logger)
    assert logger.found == straight.found[1:]


def test_what_evolves_before_and_after_the_batches_is_logged_from_the_start_of_training_on(tmp_path):
    class Asking(Automatic):
        def on_train_epoch_end(self):
            self.optimizer.evolve()

    module, logger = Asking(1, SET(interval=None)), Kept()
    module.optimizer.evolve()
    fit(module, tmp_path, callbacks=[telemetry.lightning_callback()], logger=logger)
    assert [record.step for record in module.optimizer.history] == [0, 3, 6, 9]
    assert [step for step, _ in logger.found] == [3, 6, 9]
    records = module.optimizer.history[1:]
    assert [found for _, found in logger.found] == [telemetry.scalars(record) for record in records]


class Two(lightning.LightningModule):
    """A pair of networks, each with an optimizer of its own; the second steps in every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        pairs = [sparse_pair(seed) for seed in (1, 2)]
        self.models, self.pair = nn.ModuleList(model for model, _ in pairs), [optimizer for _, optimizer in pairs]

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        for number, (model, optimizer) in enumerate(zip(self.models, self.optimizers(), strict=True)):
            if batch_idx % (number + 1) == 0:
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(model(inputs), labels))
                optimizer.step()

    def configure_optimizers(self):
        return self.pair


def test_several_sparse_optimizers_are_logged_under_names_of_their_own():
    module, logger = Two(), Kept()
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options |= {"logger": logger, "callbacks": [telemetry.lightning_callback()], "log_every_n_steps": 1}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, **options)
    trainer.fit(module, loader())
    first, second = (optimizer.history for optimizer in module.pair)
    assert [len(first), len(second)] == [5, 2]
    for prefix, history, steps in ("sparsify-0", first, (1, 3, 5, 7, 9)), ("sparsify-1", second, (2, 6)):
        found = [(step, scalars) for step, scalars in logger.found if f"{prefix}/density" in scalars]
        assert found == [(s, telemetry.scalars(record, prefix)) for s, record in zip(steps, history, strict=True)]


class Logging(Automatic):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def test_lightnings_loggers_write_them_beside_the_loss(tmp_path):
    pytest.importorskip("tensorboard")
    from tests.telemetry.test_tensorboard import curves

    module, to_csv = Logging(1), CSVLogger(tmp_path, "csv")
    loggers = [to_csv, TensorBoardLogger(tmp_path, "board")]
    fit(module, tmp_path, callbacks=[telemetry.lightning_callback()], logger=loggers)
    with open(f"{to_csv.log_dir}/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sparsify/0/turnover"]]
    turnover = [record.layers["0"].turnover for record in module.optimizer.history]
    assert [float(row["sparsify/0/turnover"]) for row in rows] == pytest.approx(turnover)
    found = curves(loggers[1].log_dir)
    steps = [step for step, _ in found["sparsify/0/turnover"]]
    assert steps == [1, 3, 5, 7] == [int(row["step"]) for row in rows]
    assert set(steps) <= {step for step, _ in found["loss"]}


def test_the_callback_is_lightnings_and_copied_and_pickled():
    callback = telemetry.lightning_callback()
    for each in callback, copy.deepcopy(callback), pickle.loads(pickle.dumps(callback)):
        assert isinstance(each, Callback)
        assert type(each).__name__ == "LightningCallback"


def test_the_callback_is_of_the_package_that_is_used():
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_PACKAGE],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert told.stdout.split() == ["True", "False"], told.stderr


OTHER_PACKAGE = """
import sys
from tests.support import torchvision_on_cpu
import pytorch_lightning
from sparsify import telemetry
print(isinstance(telemetry.lightning_callback(), pytorch_lightning.Callback), "lightning.pytorch" in sys.modules)
"""


def test_without_lightning_an_error_says_how_to_get_it(monkeypatch):
    from sparsify._src.telemetry import trainers

    monkeypatch.setattr(trainers, "LIGHTNING", ("not_there.pytorch", "not_there_either"))
    with pytest.raises(ModuleNotFoundError, match="pip install lightning"):
        telemetry.lightning_callback()
