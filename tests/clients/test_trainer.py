"""Hugging Face's Trainer: it is given the sparse optimizer, or makes one from its arguments for `sparsify` to wrap."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sparsify import SET, GraNet, RigL, densify, sparsify
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
        report_to=[],
        disable_tqdm=True,
        **options,
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
