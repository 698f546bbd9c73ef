"""Accelerate: `sparsify` comes before `prepare`; the loop, its mixed precision and its checkpoints stay as they are."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sparsify import sparsify
from tests.support import plain_loop
from tests.support.comparing import assert_same
from tests.support.plain_loop import ACCUMULATED, CLIP, EVOLUTIONS, annealed, dataset


@pytest.fixture(autouse=True)
def _forget_accelerators():
    """All accelerators of a process share their state."""
    yield
    new_process()


def new_process():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def sparse_pair(seed, evolution=EVOLUTIONS["SET"]):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    return sparsify(model, torch.optim.AdamW(model.parameters(), lr=0.01), density=0.3, evolution=evolution)


class Program:
    """What a user of Accelerate writes."""

    def __init__(self, seed, evolution=EVOLUTIONS["SET"], shuffle=True, **options):
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=ACCUMULATED,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),
            **options,
        )
        model, optimizer = sparse_pair(seed, evolution)
        # With a generator of its own, a loader that begins in the middle of an epoch draws nothing from the global one.
        loader = DataLoader(dataset(), batch_size=8, shuffle=shuffle, generator=torch.Generator())
        parts = self.accelerator.prepare(model, optimizer, loader, annealed(optimizer))
        self.model, self.optimizer, self.loader, self.scheduler = parts

    def train(self, epoch, first=0, save_at=None, folder=None):
        self.loader.set_epoch(epoch)
        loader = self.accelerator.skip_first_batches(self.loader, first) if first else self.loader
        for number, (inputs, labels) in enumerate(loader, first + 1):
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(F.cross_entropy(self.model(inputs), labels))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            if number == save_at:
                self.accelerator.save_state(folder)

    def state(self):
        return self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict()


@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_trains_as_the_plain_loop_does_with_accumulation_clipping_and_scheduler(evolution, mixed_precision):
    program = Program(1, evolution, shuffle=False, mixed_precision=mixed_precision)
    for epoch in range(3):
        program.train(epoch)
    trained = program.state()

    batches = DataLoader(dataset(), batch_size=8, generator=torch.Generator())
    *states, rates = plain_loop.train(*sparse_pair(1, evolution), batches, mixed_precision == "bf16")
    assert_same(trained[:2], tuple(states))
    assert trained[2]["_last_lr"] == rates


@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_training_resumed_from_save_state_in_the_middle_of_an_epoch_is_bit_exact(evolution, mixed_precision, tmp_path):
    straight = Program(1, evolution, mixed_precision=mixed_precision)
    straight.train(0)
    straight.train(1, save_at=4, folder=tmp_path)
    straight.train(2)
    new_process()

    resumed = Program(2, evolution, mixed_precision=mixed_precision)
    resumed.accelerator.load_state(tmp_path)
    assert [record["step"] for record in resumed.optimizer.state_dict()["sparsify"]["history"]] == [2, 4]
    resumed.train(1, first=4)
    resumed.train(2)
    assert_same(resumed.state(), straight.state())
    assert [record["step"] for record in resumed.optimizer.state_dict()["sparsify"]["history"]] == [2, 4, 6, 8]


def test_a_model_saved_by_accelerate_loads_into_a_sparse_model_of_another_topology(tmp_path):
    program = Program(1)
    program.train(0)
    program.accelerator.save_model(program.model, tmp_path)
    fresh, _ = sparse_pair(2)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_same(fresh.state_dict(), program.accelerator.unwrap_model(program.model).state_dict())


def test_a_prepared_optimizer_is_refused_and_the_way_out_named():
    model = nn.Sequential(nn.Linear(12, 32))
    optimizer = torch.optim.AdamW(model.parameters())
    model, prepared = Accelerator(cpu=True).prepare(model, optimizer)
    with pytest.raises(TypeError, match=r"must be the original one, got AcceleratedOptimizer.*before the trainer"):
        sparsify(model, prepared, density=0.3)
    assert type(model[0]) is nn.Linear
