"""Short training programs, one for each trainer, that go on from their last checkpoint when they are started again.

    python -m tests.support.resumable_programs plain|accelerate|lightning|trainer FOLDER

With $KILL_AT the process kills itself after so many optimizer steps of its own.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from sparsify import GraNet, sparsify

EPOCHS, BATCHES, BATCH_SIZE = 4, 6, 8
STEPS = EPOCHS * BATCHES
EVOLUTION = GraNet(until=22, prune_until=18, interval=2, start_density=0.8)


class Steps:
    """Counts the optimizer steps of this process, and kills it after the one that $KILL_AT names."""

    def __init__(self, optimizer):
        self.count = 0
        optimizer.register_step_post_hook(self)

    def __call__(self, *_):
        self.count += 1
        if self.count == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


def dataset():
    inputs = torch.randn(BATCHES * BATCH_SIZE, 12, generator=torch.Generator().manual_seed(7))
    return TensorDataset(inputs, inputs[:, :4].argmax(1))


def make_sparse(model):
    return sparsify(model, AdamW(model.parameters(), lr=0.01), density=0.3, evolution=EVOLUTION)


def network():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))


def plain(folder):
    model, optimizer = make_sparse(network())
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    steps = Steps(optimizer)
    order = torch.Generator()
    loader = DataLoader(dataset(), BATCH_SIZE, shuffle=True, generator=order)
    path, begin = folder / "checkpoint.pt", 0
    if path.exists():
        checkpoint = torch.load(path, weights_only=True)
        for part, name in (model, "model"), (optimizer, "optimizer"), (scheduler, "scheduler"):
            part.load_state_dict(checkpoint[name])
        torch.set_rng_state(checkpoint["random"])
        begin = checkpoint["epoch"]
    for epoch in range(begin, EPOCHS):
        order.manual_seed(epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            scheduler.step()
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save({**states, "random": torch.get_rng_state(), "epoch": epoch + 1}, path)
    return model, optimizer, scheduler, steps


def accelerate(folder):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    model, optimizer = make_sparse(network())
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    steps = Steps(optimizer)
    loader = DataLoader(dataset(), BATCH_SIZE, shuffle=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    done = len(list(folder.glob("epoch-*")))
    if done:
        accelerator.load_state(folder / f"epoch-{done}")
    for epoch in range(done, EPOCHS):
        loader.set_epoch(epoch)
        for inputs, labels in loader:
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        accelerator.save_state(folder / f"epoch-{epoch + 1}")
    return model, optimizer, scheduler, steps


def lightning(folder):
    from tests.support import torchvision_on_cpu  # noqa: F401, I001
    from lightning import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.optimizer = make_sparse(network())

        def training_step(self, batch, batch_idx):
            inputs, labels = batch
            return F.cross_entropy(self.model(inputs), labels)

        def configure_optimizers(self):
            scheduler = {"scheduler": CosineAnnealingLR(self.optimizer, STEPS), "interval": "step"}
            return {"optimizer": self.optimizer, "lr_scheduler": scheduler}

    class RandomState(Callback):
        """Dropout's: Lightning leaves it to the user."""

        saved = None

        def state_dict(self):
            return {"random": torch.get_rng_state()}

        def load_state_dict(self, state_dict):
            self.saved = state_dict["random"]

        def on_train_start(self, trainer, pl_module):
            if self.saved is not None:
                torch.set_rng_state(self.saved)

    module, data = Classifier(), dataset()
    steps = Steps(module.optimizer)
    sampler = DistributedSampler(data, num_replicas=1, rank=0)  # Lightning tells it the epoch
    loader = DataLoader(data, BATCH_SIZE, sampler=sampler, generator=torch.Generator())
    callbacks = [RandomState(), ModelCheckpoint(folder, save_last=True)]
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=callbacks, **options)
    trainer.fit(module, loader, ckpt_path="last")
    return module.model, module.optimizer, trainer.lr_scheduler_configs[0].scheduler, steps


def trainer(folder):
    from tests.support import torchvision_on_cpu  # noqa: F401, I001
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Sentences(Dataset):
        def __init__(self):
            self.tokens = torch.randint(64, (BATCHES * BATCH_SIZE, 8), generator=torch.Generator().manual_seed(7))

        def __len__(self):
            return len(self.tokens)

        def __getitem__(self, index):
            return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 2}

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, optimizer = make_sparse(BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)))
    steps = Steps(optimizer)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        save_steps=5,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Sentences(), optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    return model, optimizer, trainer.lr_scheduler, steps


def main(program, folder):
    torch.manual_seed(0)
    model, optimizer, scheduler, steps = program(folder)
    states = [part.state_dict() for part in (model, optimizer, scheduler)]
    torch.save({"states": states, "steps": steps.count}, folder / "final.pt")


if __name__ == "__main__":
    programs = {"plain": plain, "accelerate": accelerate, "lightning": lightning, "trainer": trainer}
    main(programs[sys.argv[1]], Path(sys.argv[2]))
