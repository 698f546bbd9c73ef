"""Hugging Face's Trainer: it is given the sparse optimizer, or makes one from its arguments for `sparsify` to wrap."""

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from sparsify import SET, GraNet, RigL, densify, sparsify, telemetry
from tests.support.comparing import assert_same

ACCUMULATED, CLIP = 4, 0.5
EPOCHS, STEPS_PER_EPOCH = 3, 3  # ten batches: four, four and the two that are left
EVOLUTIONS = {"SET": SET(interval=2), "GraNet": GraNet(until=8, prune_until=6, interval=2, start_density=0.8)}


class Sentences(Dataset):
    def __init__(self):
        self.tokens = torch.randint(64, (40, 8), generator=torch.Generator().manual_seed(7))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def llama(seed, dropout=0.1):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    # The head is tied to the embedding: it stays dense, and files hold it once.
    config = LlamaConfig(vocab_size=64, attention_dropout=dropout, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config)


def sparse_pair(model, evolution=EVOLUTIONS["SET"]):
    return sparsify(model, AdamW(model.parameters(), lr=0.01), density=0.3, evolution=evolution)


def trainer_of(model, optimizer, folder, **options):
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=ACCUMULATED,
        num_train_epochs=EPOCHS,
        learning_rate=0.01,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        save_steps=4,
        use_cpu=True,
        disable_tqdm=True,
        **{"report_to": [], **options},
    )
    data = Sentences()
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, optimizers=(optimizer, None))


def state(trainer):
    return trainer.model.state_dict(), trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict()


def steps_of(optimizer):
    return [record.step for record in optimizer.history]


@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
@pytest.mark.parametrize("bf16", [False, True])
def test_trains_as_the_plain_loop_does_with_accumulation_clipping_and_scheduler(evolution, bf16, tmp_path):
    model, optimizer = sparse_pair(llama(1, dropout=0.0), evolution)
    trainer = trainer_of(model, optimizer, tmp_path, bf16=bf16)
    trainer.train()
    assert trainer.state.global_step == EPOCHS * STEPS_PER_EPOCH

    model, optimizer = sparse_pair(llama(1, dropout=0.0), evolution)
    idle = trainer_of(model, optimizer, tmp_path)
    batches, scheduler = idle.get_train_dataloader(), idle.create_scheduler(EPOCHS * STEPS_PER_EPOCH)
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for number, batch in enumerate(batches, 1):
            together = ACCUMULATED if number <= 8 else 2
            told = together * batch["labels"][:, 1:].numel()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model(**batch, num_items_in_batch=told).loss.backward()
            if number % ACCUMULATED == 0 or number == len(batches):
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert steps_of(optimizer) == [2, 4, 6, 8]
    assert_same(state(trainer), (model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))


@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
@pytest.mark.parametrize("bf16", [False, True])
def test_training_resumed_from_a_checkpoint_in_the_middle_of_an_epoch_is_bit_exact(evolution, bf16, tmp_path):
    straight = trainer_of(*sparse_pair(llama(1), evolution), tmp_path, bf16=bf16)
    straight.train()
    model, optimizer = sparse_pair(llama(2), evolution)
    resumed = trainer_of(model, optimizer, tmp_path, bf16=bf16)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert steps_of(optimizer) == [2, 4, 6, 8]
    assert_same(state(resumed), state(straight))


def test_the_trainers_own_optimizer_trains_sparse_in_its_weight_decay_groups_and_resumes(tmp_path):
    def fresh(seed):
        trainer = trainer_of(llama(seed), None, tmp_path, weight_decay=0.1)
        adamw = trainer.create_optimizer()
        _, trainer.optimizer = sparsify(trainer.model, adamw, density=0.3, evolution=SET(interval=2), seed=seed)
        return trainer, trainer.optimizer

    straight, optimizer = fresh(1)
    straight.train()
    layer = straight.model.model.layers[0].mlp.up_proj
    decayed, norms = (group["params"] for group in optimizer.param_groups)
    assert any(layer.values is parameter for parameter in decayed)
    assert len(norms) == 5
    assert steps_of(optimizer) == [2, 4, 6, 8]
    resumed, _ = fresh(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(state(resumed), state(straight))


def test_activation_checkpointing_changes_nothing_though_the_layers_run_twice(tmp_path):
    states = []
    for twice in False, True:
        trainer = trainer_of(*sparse_pair(llama(1), RigL(interval=2)), tmp_path, activation_checkpointing=twice)
        trainer.train()
        states.append(state(trainer))
    assert_same(*states)


def test_the_best_model_is_loaded_at_the_end_with_its_topology_and_evaluates_as_it_did(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    # What is worst counts as best here: the first checkpoint, whose topology is not the last one's.
    trainer = trainer_of(*sparse_pair(llama(1)), tmp_path, greater_is_better=True, **options)
    trainer.train()
    best = tmp_path / "checkpoint-4"
    assert trainer.state.best_model_checkpoint == str(best)
    fresh, _ = sparse_pair(llama(2))
    fresh.load_state_dict(load_file(best / "model.safetensors"), strict=False)
    assert_same(trainer.model.state_dict(), fresh.state_dict())
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


def test_a_sparse_model_saved_pretrained_loads_into_a_sparse_model(tmp_path):
    model, _ = sparse_pair(llama(1))
    model.save_pretrained(tmp_path)
    fresh, _ = sparse_pair(llama(2))
    missing, unexpected = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied: it came with the embedding
    assert_same(fresh.state_dict(), model.state_dict())


def test_a_densified_model_saved_pretrained_comes_back_from_pretrained(tmp_path):
    model, _ = sparse_pair(llama(1))
    densify(model).save_pretrained(tmp_path)
    dense = LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(dense.eval()(tokens).logits, model.eval()(tokens).logits)


def logged(trainer):
    """What of evolutions is in the trainer's log."""
    found = [entry for entry in trainer.state.log_history if "sparsify/density" in entry]
    return [(entry["step"], {name: x for name, x in entry.items() if name.startswith("sparsify")}) for entry in found]


class Heard(TrainerCallback):
    """What those hear whom `report_to` sets up."""

    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, logs, **_):
        if "sparsify/density" in logs:
            self.steps.append(state.global_step)


def telling(trainer):
    trainer.add_callback(telemetry.trainer_callback(trainer))
    trainer.add_callback(heard := Heard())
    return trainer, heard


@pytest.mark.parametrize("evolution", EVOLUTIONS.values(), ids=EVOLUTIONS)
def test_each_record_is_logged_once_at_its_step_and_after_resuming_too(evolution, tmp_path):
    model, optimizer = sparse_pair(llama(1), evolution)
    straight, heard = telling(trainer_of(model, optimizer, tmp_path))
    straight.train()
    expected = [(record.step, telemetry.scalars(record)) for record in optimizer.history]
    assert heard.steps == [2, 4, 6, 8] == [step for step, _ in expected]
    assert logged(straight) == expected
    model, optimizer = sparse_pair(llama(2), evolution)
    resumed, heard = telling(trainer_of(model, optimizer, tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert heard.steps == [6, 8]
    assert logged(resumed) == expected  # the first two came with the checkpoint
    saved = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert len([entry for entry in saved["log_history"] if "sparsify/density" in entry]) == 4


def test_what_evolved_before_is_not_logged_and_what_evolves_last_is(tmp_path):
    class Asking(TrainerCallback):
        def on_epoch_end(self, *_, **__):
            optimizer.evolve()

    model, optimizer = sparse_pair(llama(1), SET(interval=None))
    optimizer.evolve()
    trainer, heard = telling(trainer_of(model, optimizer, tmp_path))
    trainer.add_callback(Asking())
    trainer.train()
    assert steps_of(optimizer) == [0, 3, 6, 9]
    assert heard.steps == [4, 7, 9]  # after the next step, or the last


def test_tensorboard_gets_them_by_report_to(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tests.telemetry.test_tensorboard import curves

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    model, optimizer = sparse_pair(llama(1))
    trainer, _ = telling(trainer_of(model, optimizer, tmp_path, report_to=["tensorboard"]))
    trainer.train()
    name, layer = next(iter(optimizer.history[0].layers.items()))
    found = curves(tmp_path / "board")[f"train/sparsify/{name}/turnover"]
    assert found[0] == (2, pytest.approx(layer.turnover))
    assert [step for step, _ in found] == [2, 4, 6, 8]


class Picklable:
    """What the callback needs of a Trainer, which cannot be pickled itself while a layer of its model is watched."""

    def __init__(self, optimizer):
        self.optimizer, self.log = optimizer, print
        self.callbacks = [telemetry.trainer_callback(self)]


def test_the_callback_is_of_transformers_and_pickled_with_its_trainer():
    trainer = Picklable(sparse_pair(llama(1))[1])
    again = pickle.loads(pickle.dumps(trainer))
    for each in trainer, again:
        (callback,) = each.callbacks
        assert isinstance(callback, TrainerCallback)
        assert type(callback).__name__ == "SparsifyCallback"
        assert callback.trainer is each
    callback.on_train_begin()
    callback.on_step_end()


@pytest.mark.parametrize("trainer", [None, Trainer, torch.nn.Linear(2, 2)])
def test_the_callback_is_given_a_trainer(trainer):
    with pytest.raises(TypeError, match=r"trainer must be a transformers.Trainer.*Make it first"):
        telemetry.trainer_callback(trainer)


def test_without_transformers_an_error_says_how_to_get_it(monkeypatch, tmp_path):
    trainer = trainer_of(*sparse_pair(llama(1)), tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        telemetry.trainer_callback(trainer)
