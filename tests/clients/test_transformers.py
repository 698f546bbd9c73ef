"""Hugging Face Transformers: real models, tiny configurations, random weights."""

import io

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from sparsify import SET, RigL, SparseLinear, Static, densify, plan, sparsify, summary
from tests.support.comparing import assert_same

VOCABULARY = 40
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LLAMA = SMALL | {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": 64}


def bert():
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **SMALL))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def llama():
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(num_local_experts=4, **LLAMA))


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes))


def vit():
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=3, **SMALL))


def tokens(generator):
    return torch.randint(2, VOCABULARY, (4, 12), generator=generator)


def batch(model):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (4,), generator=generator)
    if isinstance(model, ViTForImageClassification):
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator), "labels": labels}
    words = tokens(generator)
    if isinstance(model, BertForSequenceClassification):
        return {"input_ids": words, "attention_mask": (words > 5).long(), "labels": labels}
    return {"input_ids": words, "labels": words}


MODELS = {"BERT": bert, "GPT-2": gpt2, "Llama": llama, "Mixtral": mixtral, "T5": t5, "ViT": vit}
LAYERS = {"BERT": 13, "GPT-2": 8, "Llama": 15, "Mixtral": 9, "T5": 32, "ViT": 12}
"""Sparse layers of each at density 0.3."""


def trained(name, steps=20, seed=0, **options):
    torch.manual_seed(seed)
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=SET(interval=5), **options)
    return (model, optimizer, *train(model, optimizer, steps))


def train(model, optimizer, steps):
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch(model)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def outputs(model):
    with torch.no_grad():
        return model.eval()(**batch(model)).logits


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_evolves_evaluates_saves_and_loads(name, tmp_path):
    model, optimizer, *losses = trained(name)
    assert len(summary(model).sparse) == LAYERS[name]
    assert losses[-1] < 0.8 * losses[0]
    assert [record.step for record in optimizer.history] == [5, 10, 15, 20]
    assert all(sum(record.grown.values()) > 50 for record in optimizer.history)
    logits = outputs(model)
    torch.testing.assert_close(outputs(densify(model)), logits, atol=1e-5, rtol=1e-4)

    save_model(model, tmp_path / "model.safetensors")
    served = sparsify(MODELS[name](), None, 0.3, seed=9)[0]
    load_model(served, tmp_path / "model.safetensors")
    assert_same(outputs(served), logits)

    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    other, resumed, *_ = trained(name, steps=0, seed=1)
    other.load_state_dict(checkpoint["model"])
    resumed.load_state_dict(checkpoint["optimizer"])
    for pair in (model, optimizer), (other, resumed):
        torch.manual_seed(3)
        train(*pair, 6)
    assert_same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mixtral", "T5"])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 2}, {"do_sample": False, "use_cache": False}])
def test_it_generates_what_its_dense_equivalent_generates(name, options):
    model = trained(name)[0].eval()
    prompt = tokens(torch.Generator().manual_seed(8))[:2, :5]
    settings = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 1, "attention_mask": torch.ones_like(prompt)}
    made = model.generate(prompt, **settings, **options)
    assert_same(made, densify(model).generate(prompt, **settings, **options))


@pytest.mark.parametrize("name", MODELS)
def test_a_dense_checkpoint_loads_at_the_topology_and_densify_gives_one_back(name):
    model, dense = trained(name)[0], MODELS[name]()
    with pytest.warns(UserWarning, match="of their magnitude was left out"):
        model.load_state_dict(dense.state_dict())
    for key, layer in model.named_modules():
        if isinstance(layer, SparseLinear):
            weight = dense.get_submodule(key).weight
            weight = weight.t() if isinstance(dense.get_submodule(key), Conv1D) else weight
            assert torch.equal(layer.values, weight.flatten()[layer.flat()])
    plain = densify(model)
    assert [type(module) for module in plain.modules()] == [type(module) for module in dense.modules()]
    dense.load_state_dict(plain.state_dict())
    assert_same(outputs(dense), outputs(plain))


def test_rigl_trains_and_gradient_checkpointing_works():
    torch.manual_seed(0)
    model = llama()
    model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=RigL(interval=5))
    losses = train(model, optimizer, 20)
    assert losses[-1] < 0.8 * losses[0]
    assert len(optimizer.history) == 4


@pytest.mark.parametrize("name", ["GPT-2", "T5"])
def test_tied_heads_stay_dense_and_tied(name):
    model = trained(name)[0]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    rows = {row.name: row.reason for row in plan(MODELS[name](), 0.3).dense}
    assert "tied" in rows["lm_head"]


def test_what_is_no_linear_layer_is_reported():
    rows = {row.name: row for row in plan(mixtral(), 0.3).dense}
    experts = [row for row in rows.values() if "expert" in row.kind.lower()]
    assert len(experts) == 2
    assert {row.reason for row in experts} == {"only linear layers and convolutions become sparse"}


def conv1d(dtype=torch.float64):
    layer = Conv1D(12, 8).to(dtype)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_a_conv1d_becomes_a_sparse_layer_that_computes_the_same():
    dense = conv1d()
    model = nn.Sequential(dense)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    dense(x).square().sum().backward()
    optimizer.step()
    moments = optimizer.state[dense.weight]["exp_avg"].clone()
    weight, grad = dense.weight.detach().clone(), dense.weight.grad.clone()
    model, optimizer = sparsify(model, optimizer, 0.5, start="magnitude", evolution=Static())
    layer = model[0]
    assert (layer.in_features, layer.out_features, layer.nf, layer.transposed) == (8, 12, 12, True)
    flat = layer.flat()
    for kept, whole in (
        (layer.values, weight),
        (layer.values.grad, grad),
        (optimizer.state[layer.values]["exp_avg"], moments),
    ):
        assert torch.equal(kept, whole.t().flatten()[flat])
    assert layer.bias is dense.bias
    back = densify(model)
    assert type(back[0]) is Conv1D
    torch.testing.assert_close(back(x), model(x))
    other = conv1d()
    with pytest.warns(UserWarning, match="of their magnitude was left out"):
        model.load_state_dict(nn.Sequential(other).state_dict())
    assert torch.equal(layer.values, other.weight.t().flatten()[flat])
    with pytest.raises(RuntimeError, match=r"0.weight must be \(8, 12\), got \(12, 8\)"):
        model.load_state_dict({"0.weight": torch.zeros(12, 8), "0.bias": torch.zeros(12)})
