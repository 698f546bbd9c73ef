import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify import SET, SparseLinear, SparseMultiheadAttention, Static, densify, plan, sparsify, summary
from sparsify._src import api
from tests.support.comparing import assert_same, snapshot

KINDS = {
    "packed": {},
    "separate": {"kdim": 12, "vdim": 20},
    "without bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "all": {"kdim": 12, "vdim": 20, "add_bias_kv": True, "add_zero_attn": True, "dropout": 0.3},
}
LENGTH, KEYS, BATCH, HEADS = 5, 7, 3, 4


def dense(**options):
    attention = nn.MultiheadAttention(16, HEADS, dtype=torch.float64, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention


def sparse(attention, density=0.4, **options):
    return sparsify(nn.ModuleDict({"a": attention}), None, density, seed=1, **options)[0].a


def inputs(attention, batch=BATCH):
    shapes = (LENGTH, attention.embed_dim), (KEYS, attention.kdim), (KEYS, attention.vdim)
    if batch is None:
        return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    order = (batch, ...) if attention.batch_first else (..., batch)
    sizes = [(batch, *shape) if order[0] == batch else (shape[0], batch, shape[1]) for shape in shapes]
    return [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]


def masks(batch):
    hidden = torch.rand(LENGTH, KEYS) < 0.3
    hidden[:, 0] = False  # or a row of nothing but -inf gives NaN, in both
    heads = (batch or 1) * HEADS
    padding = torch.zeros(batch or 1, KEYS, dtype=torch.bool)
    padding[-1, -2:] = True
    padding = padding if batch else padding[0]
    return [
        {},
        {"attn_mask": hidden},
        {"attn_mask": torch.randn(LENGTH, KEYS, dtype=torch.float64)},
        {"attn_mask": torch.randn(heads, LENGTH, KEYS, dtype=torch.float64)},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "attn_mask": hidden},
        {"attn_mask": torch.ones(LENGTH, KEYS).triu(1).bool(), "is_causal": True},
        {"key_padding_mask": padding, "attn_mask": torch.ones(LENGTH, KEYS).triu(1).bool(), "is_causal": True},
    ]


@pytest.mark.parametrize("batch", [BATCH, None])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_gives_what_the_dense_equivalent_gives(kind, batch_first, batch):
    layer = sparse(dense(batch_first=batch_first, **KINDS[kind]))
    twin = layer.to_attention()
    assert type(layer) is SparseMultiheadAttention
    assert type(twin) is nn.MultiheadAttention
    for train in True, False:
        layer.train(train), twin.train(train)
        for options in masks(batch):
            for shown in {"need_weights": False}, {}, {"average_attn_weights": False}:
                ours = inputs(layer, batch)
                theirs = [x.detach().clone().requires_grad_() for x in ours]
                results = []
                for module, args in ((layer, ours), (twin, theirs)):
                    torch.manual_seed(4)
                    output, weights = module(*args, **options, **shown)
                    module.zero_grad()
                    (output.square().sum() + (0 if weights is None else weights.square().sum())).backward()
                    results.append((output, weights, *[x.grad for x in args]))
                for one, other in zip(*results, strict=True):
                    torch.testing.assert_close(one, other)
                for name in "q_proj", "k_proj", "v_proj":
                    part, grad = getattr(layer, name), gradient(twin, name)
                    torch.testing.assert_close(part.values.grad, grad.flatten()[part.flat()])
                torch.testing.assert_close(
                    layer.out_proj.values.grad, twin.out_proj.weight.grad.flatten()[layer.out_proj.flat()]
                )
                for bias in "bias_k", "bias_v":
                    if getattr(layer, bias) is not None:
                        torch.testing.assert_close(getattr(layer, bias).grad, getattr(twin, bias).grad)


def gradient(attention, name):
    if attention.in_proj_weight is None:
        return getattr(attention, f"{name}_weight").grad
    return attention.in_proj_weight.grad.chunk(3)["qkv".index(name[0])]


def trained(attention, make=torch.optim.AdamW, steps=3):
    optimizer = make(attention.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        attention(*inputs(attention))[0].square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["packed", "separate", "without bias"])
def test_what_the_optimizer_knew_goes_to_each_projection(kind):
    attention = dense(**KINDS[kind])
    optimizer = trained(attention)
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    model, olds = nn.Sequential(attention), dict(attention.named_parameters())
    model, optimizer = sparsify(model, optimizer, 0.4, start="magnitude", evolution=Static())
    layer = model[0]
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = getattr(layer, name)
        old = olds["in_proj_weight" if kind != "separate" else f"{name}_weight"]
        rows = slice(16 * number, 16 * (number + 1))
        whole = rows if kind != "separate" else slice(None)
        for key in "exp_avg", "exp_avg_sq":
            expected = state[old][key][whole].flatten()[part.flat()]
            assert torch.equal(optimizer.state[part.values][key], expected)
            if part.bias is not None:
                expected = state[olds["in_proj_bias"]][key][rows]
                assert torch.equal(optimizer.state[part.bias][key], expected)
    assert set(optimizer.state) == set(model.parameters()) == set(optimizer.param_groups[0]["params"])
    del olds, old, state
    layer(*inputs(layer))[0].sum().backward()
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}, "no two share a step counter"


def test_gradients_flags_hooks_and_attributes_survive():
    attention = dense().eval()
    attention.note, calls = "mine", []
    attention.register_forward_hook(lambda *_: calls.append(1))
    attention(*inputs(attention))[0].sum().backward()
    grads = attention.in_proj_weight.grad.clone()
    layer = sparse(attention)
    assert (layer.note, layer.training, layer.v_proj.training) == ("mine", False, False)
    assert torch.equal(layer.v_proj.values.grad, grads[32:].flatten()[layer.v_proj.flat()])
    layer(*inputs(layer))
    assert len(calls) == 2


def test_param_names_follow():
    model = nn.Sequential(dense())
    optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.1)
    model, optimizer = sparsify(model, optimizer, 0.4)
    names = optimizer.param_groups[0]["param_names"]
    assert [dict(model.named_parameters())[name] for name in names] == optimizer.param_groups[0]["params"]
    assert len(names) == 8


def test_globs_reach_single_projections_and_the_rest_stays_dense():
    attention = dense()
    weight = attention.in_proj_weight.detach()
    layer = sparse(attention, skip=["a.v_proj"])
    assert [type(getattr(layer, f"{x}_proj")) for x in "qkv"] == [SparseLinear, SparseLinear, nn.Linear]
    assert torch.equal(layer.v_proj.weight, weight[32:])
    assert layer.v_proj.weight.untyped_storage().nbytes() == 16 * 16 * 8, "not a view that keeps all of it"
    twin = layer.to_attention()
    args = inputs(layer)
    torch.testing.assert_close(layer(*args), twin(*args))
    only_out = sparse(dense(), {"a.out_proj": 0.1})
    assert isinstance(only_out.out_proj, SparseLinear)
    assert type(only_out.q_proj) is nn.Linear
    assert type(sparse(dense(), {"a": 0.3, "*": 0.2}, skip=[]).k_proj) is SparseLinear


def test_plan_and_summary_show_each_projection():
    model = nn.ModuleDict({"a": dense(kdim=12, vdim=20), "b": nn.Linear(4, 4, dtype=torch.float64)})
    rows = {row.name: row for row in plan(model, {"a": 0.25, "b": 0.5}).layers}
    assert list(rows) == ["a.q_proj", "a.k_proj", "a.v_proj", "a.out_proj", "b"]
    assert rows["a.k_proj"].shape == (16, 12)
    assert rows["a.k_proj"].nnz == 48
    assert {row.reason for row in summary(model).layers[:4]} == {"it is an ordinary MultiheadAttention"}
    model, _ = sparsify(model, None, {"a": 0.25, "b": 0.5})
    assert [(row.name, row.nnz) for row in summary(model).layers] == [(name, row.nnz) for name, row in rows.items()]


def test_frozen_and_tied_parts_stay_dense_and_say_why():
    attention = dense()
    attention.in_proj_weight.requires_grad_(False)
    model = nn.Sequential(attention)
    reasons = [row.reason for row in plan(model, 0.3).layers]
    assert reasons == ["it is frozen"] * 3 + [None]
    other = dense()
    other.in_proj_weight = attention.in_proj_weight.requires_grad_()
    reasons = [row.reason for row in plan(nn.Sequential(attention, other), 0.3).layers]
    assert reasons == (["its weight is tied to another module's"] * 3 + [None]) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_dense_checkpoints_load_at_the_topology_and_densify_gives_them_back(kind):
    model, _ = sparsify(nn.Sequential(dense(**KINDS[kind])), None, 0.4, seed=1)
    other = nn.Sequential(dense(**KINDS[kind]))
    flat = model[0].k_proj.flat()
    with pytest.warns(UserWarning, match="4 sparse layers .* was left out"):
        model.load_state_dict(other.state_dict())
    assert torch.equal(model[0].k_proj.flat(), flat)
    weight = other[0].in_proj_weight[16:32] if other[0].in_proj_weight is not None else other[0].k_proj_weight
    assert torch.equal(model[0].k_proj.values, weight.flatten()[flat])
    other.load_state_dict(densify(model).state_dict())
    args = inputs(other[0])
    torch.testing.assert_close(other.eval()[0](*args), model.eval()[0](*args))
    again, _ = sparsify(nn.Sequential(dense(**KINDS[kind])), None, 0.2, seed=2)
    again.load_state_dict(model.state_dict())
    assert_same(again.eval()[0](*args), model[0](*args))


def test_training_evolves_every_projection_and_copies_train_on():
    model = nn.Sequential(dense())
    model, optimizer = sparsify(model, torch.optim.AdamW(model.parameters(), 1e-2), 0.3, evolution=SET(interval=2))
    target = torch.randn(LENGTH, BATCH, 16, dtype=torch.float64)
    args = inputs(model[0])
    losses = []

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(model[0](*args)[0], target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    before = {name: layer.flat() for name, layer in model.named_modules() if isinstance(layer, SparseLinear)}
    train(model, optimizer, 40)
    assert losses[-1] < 0.7 * losses[0]
    assert set(before) == {"0.q_proj", "0.k_proj", "0.v_proj", "0.out_proj"}
    assert not any(torch.equal(model.get_submodule(name).flat(), flat) for name, flat in before.items())
    pair = copy.deepcopy((model, optimizer))
    train(model, optimizer, 5)
    train(*pair, 5)
    assert_same(pair[0].state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["packed", "all"])
def test_a_model_on_the_meta_device_gets_its_attention_initialised(kind):
    with torch.device("meta"):
        model = nn.Sequential(nn.MultiheadAttention(16, 4, **KINDS[kind]), nn.LayerNorm(16))
    model, _ = sparsify(model, None, 0.3, skip=["0.v_proj"])
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    layer = model[0]
    assert [name for name in ("q_proj", "k_proj", "out_proj") if getattr(layer, name).bias.any()] == []
    assert 0.5 < layer.q_proj.values.std() * (0.3 * 16 * 3) ** 0.5 < 2
    assert (layer.bias_k is None) == (kind == "packed")
    assert layer.bias_k is None or layer.bias_k.isfinite().all()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("skip", [[], ["*linear*"], ["*self_attn*"]])
def test_encoders_and_decoders_give_in_eval_what_they_give_in_training(norm_first, skip):
    options = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, **options), 2, enable_nested_tensor=not norm_first
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, **options), 2)
    model, _ = sparsify(nn.ModuleDict({"encoder": encoder, "decoder": decoder}), None, 0.3, skip=skip)
    source, target = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(5)

    def run():
        memory = model.encoder(source, src_key_padding_mask=padding)
        output = model.decoder(target, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=padding)
        return memory[~padding], output

    trained = run()
    model.eval()
    with torch.no_grad():
        served = run()
    with torch.inference_mode():
        inferred = run()
    torch.testing.assert_close(served, trained)
    torch.testing.assert_close(inferred, trained)
    twin = densify(model)
    with torch.no_grad():
        memory = twin.encoder(source, src_key_padding_mask=padding)
    torch.testing.assert_close(memory[~padding], trained[0])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_nn_transformer_trains_sparse():
    model = nn.Transformer(16, 4, 1, 1, 32, dropout=0.0)
    model, optimizer = sparsify(model, torch.optim.Adam(model.parameters(), 1e-3), 0.3, evolution=SET(interval=5))
    assert len(summary(model).sparse) == 4 + 8 + 4
    source, target = torch.randn(7, 3, 16), torch.randn(5, 3, 16)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(model(source, target), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert len(optimizer.history) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_the_dense_module(dtype):
    layer = sparsify(nn.Sequential(nn.MultiheadAttention(16, 4)), None, 0.4)[0][0]
    twin, x = layer.to_attention(), torch.randn(5, 3, 16)
    masks = {}, {"attn_mask": torch.ones(5, 5).triu(1).bool()}, {"key_padding_mask": torch.zeros(3, 5).bool()}
    with torch.autocast("cpu", dtype):
        for needed in True, False:
            for mask in masks:
                ours, theirs = layer(x, x, x, need_weights=needed, **mask), twin(x, x, x, need_weights=needed, **mask)
                torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_it_compiles_whole():
    layer = sparse(dense())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    args = inputs(layer)
    mask = torch.ones(LENGTH, KEYS).triu(1).bool()
    torch.testing.assert_close(compiled(*args, attn_mask=mask), layer(*args, attn_mask=mask))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda q, k, v: {"value": v[:, 0]}, ValueError, r"all be 2-D or all 3-D, got \(3, 3, 2\)"),
        (lambda q, k, v: {"attn_mask": torch.zeros(5, 6)}, ValueError, r"attn_mask must be \(5, 7\) or \(12, 5, 7\)"),
        (lambda q, k, v: {"attn_mask": torch.zeros(5, 7, dtype=torch.int64)}, TypeError, "attn_mask must be boolean"),
        (lambda q, k, v: {"key_padding_mask": torch.zeros(7, 3)}, ValueError, r"key_padding_mask must be \(3, 7\)"),
        (lambda q, k, v: {"is_causal": True}, ValueError, "attn_mask must be given"),
        (lambda q, k, v: {"query": torch.nested.nested_tensor([q[0], q[1]])}, TypeError, "must be padded"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_bad_input_is_named(arguments, error, message):
    layer = sparse(dense())
    q, k, v = (x.detach() for x in inputs(layer))
    with pytest.raises(error, match=message):
        layer(**{"query": q, "key": k, "value": v} | arguments(q, k, v))


def test_a_call_that_fails_late_leaves_attention_and_optimizer_as_they_were(monkeypatch):
    model = nn.Sequential(dense())
    optimizer = trained(model[0])
    before = snapshot(model, optimizer)

    def boom(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(api.SparseOptimizer, "__init__", boom)
    with pytest.raises(RuntimeError, match="boom"):
        sparsify(model, optimizer, 0.3)
    assert_same(snapshot(model, optimizer), before)
