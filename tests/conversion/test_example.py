"""`plan(model, density, example=...)`: multiply-adds, speeds at each layer's sizes, no trace of the forward pass."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from sparsify import SET, plan, sparsify, summary
from sparsify._src.conversion import speed
from sparsify._src.conversion.examples import seen
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window
from tests.support.models import mlp

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Net(nn.Module):
    """A bit of everything that leaves traces in training: batch norm, dropout, an attribute, a list, a buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.unused = nn.Linear(5, 5)
        self.register_buffer("steps", torch.zeros(()))
        self.history, self.calls = [], 0

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.history.append(self.calls)
        self.steps += 1
        self.extra = nn.Parameter(torch.zeros(2))
        np.random.rand()
        random.random()
        hidden = self.drop(F.relu(self.norm(self.conv(x)))).mean((2, 3))
        return {"logits": self.fc(hidden), "hidden": (hidden,)}


def adds(report):
    return {row.name: row.multiply_adds for row in report.layers}


def dense_adds(report):
    return {row.name: row.dense_multiply_adds for row in report.layers}


# What is counted


def test_a_model_that_returns_a_dict_is_counted_layer_by_layer():
    report = plan(Net(), {"conv": 0.5, "fc": 0.25, "unused": 0.5}, kinds=KINDS, example=torch.randn(4, 3, 10, 9))
    conv, fc, unused = report.layers
    assert (conv.multiply_adds, conv.dense_multiply_adds) == (108 * 4 * 5 * 5, 216 * 4 * 5 * 5)
    assert (fc.multiply_adds, fc.dense_multiply_adds) == (10 * 4, 40 * 4)
    assert (unused.multiply_adds, unused.dense_multiply_adds, unused.milliseconds, unused.speed_up) == (
        0,
        0,
        None,
        None,
    )
    assert report.totals[-1].multiply_adds == conv.multiply_adds + fc.multiply_adds
    assert report.totals[-1].dense_multiply_adds == 216 * 100 + 160


def test_it_is_half_of_what_the_counter_of_pytorch_says():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2), nn.Conv2d(4, 4, 5, groups=2)),
        *(nn.Flatten(2), nn.Conv1d(4, 6, 4, dilation=2, padding=1), nn.Flatten(), nn.LazyLinear(7)),
    )
    x = torch.randn(5, 3, 16, 14)
    model(x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    for report in summary(model, example=x), plan(model, 0.3, example=x):
        assert 2 * report.totals[-1].dense_multiply_adds == counter.get_total_flops()
    sparse, _ = sparsify(model, None, 0.3, kinds=KINDS)
    with FlopCounterMode(display=False) as counter:
        sparse(x)
    assert 2 * summary(sparse, example=x).totals[-1].multiply_adds == counter.get_total_flops()


def test_a_plan_and_the_model_that_comes_of_it_tell_the_same():
    x = torch.randn(4, 3, 10, 9)
    told = plan(Net(), 0.3, kinds=KINDS, example=x)
    model, _ = sparsify(Net(), None, 0.3, kinds=KINDS)
    now = summary(model, example=x)
    assert adds(now) == adds(told)
    assert [row.milliseconds for row in now.layers] == [row.milliseconds for row in told.layers]


def test_all_calls_of_a_shared_module_count_at_their_own_sizes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(20, 20)
            self.same = self.fc

        def forward(self, x):
            return self.same(self.fc(x)[:3])

    report = plan(Twice(), 0.1, example=torch.randn(64, 20))
    [row] = report.layers
    assert row.multiply_adds == 40 * (64 + 3)
    places = [Place(True, 20, 20, batch) for batch in (64, 3)]
    assert row.milliseconds == pytest.approx(sum(speed.milliseconds_at(place, 40) for place in places))
    assert row.dense_milliseconds == pytest.approx(sum(map(speed.dense_milliseconds_at, places)))


def test_tokens_are_rows():
    report = plan(mlp(20, 30, 10), {"0": 0.1}, example=torch.randn(4, 7, 20))
    assert adds(report) == {"0": 60 * 28, "2": 300 * 28}
    batch = plan(mlp(20, 30, 10), {"0": 0.1}, batch=28)
    assert [row.milliseconds for row in report.layers] == [row.milliseconds for row in batch.layers]
    assert (report.batch, batch.batch) == (None, 28)


def test_attention_counts_its_projections_packed_or_not_dense_or_sparse():
    class Attends(nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, x, memory):
            return self.attention(x, key=memory, value=memory, need_weights=False)

    for sizes, width in ({}, 8), ({"kdim": 6, "vdim": 6}, 6):
        example = torch.randn(2, 5, 8), torch.randn(2, 9, width)
        model = Attends(**sizes)
        report = plan(model, {"*.q_proj": 0.5}, example=example)
        dense = {"q_proj": 64 * 10, "k_proj": 8 * width * 18, "v_proj": 8 * width * 18, "out_proj": 64 * 10}
        assert dense_adds(report) == {f"attention.{name}": count for name, count in dense.items()}
        assert report.layers[0].multiply_adds == 32 * 10
        sparse, _ = sparsify(model, None, {"*.q_proj": 0.5})
        assert adds(summary(sparse, example=example)) == adds(report)


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_that_would_take_its_fast_path_is_counted_too(training):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).train(training)
    report = plan(model, 0.3, example=torch.randn(3, 5, 16))
    assert set(dense_adds(report).values()) == {16 * 16 * 15, 16 * 32 * 15}


def test_modules_of_other_kinds_have_the_products_of_their_weights():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 6)
            self.lstm = nn.LSTM(6, 4, 2, bidirectional=True)
            self.cell = nn.GRUCell(8, 3)
            self.bilinear = nn.Bilinear(3, 2, 5)
            self.turned = nn.ConvTranspose1d(3, 4, 3)

        def forward(self, ids, other):
            steps, _ = self.lstm(self.embedding(ids))
            hidden = self.cell(steps[0])
            return self.turned(hidden.unsqueeze(2).expand(-1, -1, 5)), self.bilinear(hidden, other)

    model = Others()
    report = summary(model, example=(torch.randint(9, (7, 2)), torch.randn(2, 2)))
    lstm = sum(p.numel() for p in model.lstm.parameters() if p.dim() == 2)
    assert adds(report) == {
        "embedding": 0,
        "lstm": lstm * 14,
        "cell": (9 * 8 + 9 * 3) * 2,
        "bilinear": 30 * 2,
        "turned": 36 * 2 * 5,
    }
    assert not report.notes


def test_packed_sequences_count_their_tokens():
    model = nn.LSTM(3, 4)
    packed = pack_sequence([torch.randn(length, 3) for length in (5, 2)])
    assert adds(summary(model, example=packed)) == {"": (16 * 3 + 16 * 4) * 7}


def test_what_computes_nobody_knows_what_is_left_out_and_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return x @ self.table

    class OwnLinear(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    class OwnAttention(nn.MultiheadAttention):
        def forward(self, x):
            return x

    class Joined(nn.Linear):
        def forward(self, x):
            return torch.cat([super().forward(x), x], -1)

    model = nn.Sequential(nn.Linear(3, 3), OwnAttention(3, 1), Own(), Joined(3, 3), OwnLinear(6, 3))
    report = plan(model, 0.5, example=torch.randn(2, 3))
    assert adds(report) == {"0": 4 * 2, "1": None, "1.out_proj": None, "2": None, "3": None, "4": None}
    assert report.totals[-1].multiply_adds == 8
    assert report.layers[-1].milliseconds is None
    assert report.notes[-1] == (
        "multiply-adds are without those of 1 (OwnAttention), 1.out_proj (NonDynamicallyQuantizableLinear), 2 (Own), "
        "...: what it computes is not known"
    )
    assert "without those of" not in str(plan(model, 0.5)), "nobody has asked"


def test_an_empty_batch_has_no_products_and_takes_no_time():
    report = plan(nn.Linear(40, 30), 0.5, example=torch.randn(0, 40))
    assert (report.layers[0].multiply_adds, report.layers[0].milliseconds) == (0, None)


# How it is shown


def test_the_table_the_rows_and_the_notebook_show_it():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 10))
    report = plan(model, {"1": 0.1}, kinds=KINDS, example=torch.randn(32, 3, 5, 5))
    head, first, second, _, sparse, whole = str(report).splitlines()[:6]
    assert head.split()[-3:] == ["multiply-adds", "speed", "dead"]
    assert "  498 k  " in first
    assert "  118 k of 1.18 M  " in second
    assert "  118 k of 1.18 M  " in sparse
    assert "  636 k of 1.7 M  " in whole
    assert ">118 k of 1.18 M<" in report._repr_html_()
    row = report.rows()[1]
    assert (row["multiply_adds"], row["dense_multiply_adds"]) == (3686 * 32, 36864 * 32)
    plain = plan(model, {"1": 0.1}, kinds=KINDS)
    assert "multiply" not in str(plain)
    assert plain.rows()[1]["multiply_adds"] is plain.totals[-1].multiply_adds is plain.layers[1].speed_up is None
    inference = plan(model, {"1": 0.1}, kinds=KINDS, training=False, example=torch.randn(1, 3, 5, 5))
    assert "  multiply-adds  inference  dead" in str(inference)


def test_a_sparse_layer_that_the_example_does_not_reach_says_so():
    lines = str(plan(Net(), {"unused": 0.5}, example=torch.randn(4, 3, 8, 8))).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("  the example does not reach it")] == ["unused"]


# Speeds


def window(kernel, stride=1, padding=0, dilation=1, groups=1):
    return Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)


@pytest.mark.parametrize("training", [True, False])
def test_convolutions_are_timed_at_their_sizes_and_the_whole_counts_those_left_dense(training):
    model = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 10))
    report = plan(model, {"1": 0.1}, kinds=KINDS, example=torch.randn(32, 3, 16, 16), training=training)
    first = Place(training, 64, 27, 32, window(3, 2, 1), (16, 16))
    second = Place(training, 64, 576, 32, window(3), (8, 8))
    assert report.layers[0].milliseconds == report.layers[0].dense_milliseconds == speed.dense_milliseconds_at(first)
    assert report.layers[1].milliseconds == speed.milliseconds_at(second, 3686)
    assert report.layers[1].dense_milliseconds == speed.dense_milliseconds_at(second)
    fc = speed.dense_milliseconds_at(Place(training, 10, 64 * 36, 32))
    dense = sum(map(speed.dense_milliseconds_at, (first, second))) + fc
    assert report.totals[-1].dense_milliseconds == pytest.approx(dense)
    linear_only = plan(model, {"3": 0.1}, example=torch.randn(32, 3, 16, 16), training=training)
    assert linear_only.totals[-1].dense_milliseconds == pytest.approx(dense), "also those that kinds does not name"


@pytest.mark.parametrize(
    ("conv", "expected", "size"),
    [
        (nn.Conv2d(2, 2, (4, 3), padding="same"), window(3)._replace(kernel_size=(4, 3)), (12, 12)),
        (nn.Conv2d(2, 2, 3, padding="same"), window(3, padding=1), (9, 10)),
        (nn.Conv2d(2, 2, 3, padding="valid"), window(3), (9, 10)),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), window(3), (11, 12)),
        (nn.Conv2d(2, 2, 3, padding=0, padding_mode="reflect"), window(3), (9, 10)),
        (nn.Conv2d(4, 2, 3, 2, 2, 2, 2), window(3, 2, 2, 2, 2), (9, 10)),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_however_a_convolution_pads_its_time_is_of_what_its_window_moves_over(conv, expected, size):
    x = torch.randn(4, conv.in_channels, 9, 10)
    report = plan(conv, 0.5, kinds=KINDS, example=x)
    place = Place(True, 2, 2 * expected.taps, 4, expected, size)
    assert report.layers[0].dense_milliseconds == speed.dense_milliseconds_at(place)
    assert report.layers[0].dense_multiply_adds == place.multiply_adds
    sparse, _ = sparsify(conv, None, 0.5, kinds=KINDS)
    assert summary(sparse, example=x).layers[0].milliseconds == report.layers[0].milliseconds


def test_a_convolution_that_pads_in_a_forward_of_its_own_counts_what_comes_out():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 2, 3, 4)))

    report = plan(Padded(2, 3, 3), 0.5, kinds=KINDS, example=torch.randn(4, 2, 9, 9))
    assert report.layers[0].dense_multiply_adds == 54 * 4 * 14 * 10
    place = Place(True, 3, 18, 4, window(3), (16, 12))
    assert report.layers[0].dense_milliseconds == speed.dense_milliseconds_at(place)


def test_one_image_without_a_batch_is_one_image():
    report = plan(nn.Conv2d(2, 3, 3), 0.5, kinds=KINDS, example=torch.randn(2, 9, 9))
    assert report.layers[0].dense_multiply_adds == 54 * 49
    assert report.layers[0].dense_milliseconds == speed.dense_milliseconds_at(Place(True, 3, 18, 1, window(3), (9, 9)))


def test_losing_is_judged_at_the_sizes_of_the_example_and_the_list_is_there_to_paste(monkeypatch):
    monkeypatch.setattr(speed, "dense_milliseconds_at", lambda place: float(place.batch))
    monkeypatch.setattr(speed, "milliseconds_at", lambda place, nnz: 8.0 + 24.0 * (place.window is not None))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    small = plan(model, {"*": 0.5}, kinds=KINDS, example=torch.randn(16, 3, 5, 5), skip="losing")
    assert [row.name for row in small.sparse] == ["3"]
    assert small.layers[0].reason == "it would be slower than dense (0.50 x), and skip is 'losing'"
    assert small.skip == ("0", "1")
    assert small.notes[0] == "so that no layer is slower than dense: skip=['0', '1']"
    again = plan(model, {"*": 0.5}, kinds=KINDS, example=torch.randn(16, 3, 5, 5))
    assert (again.skip, again.notes[0]) == (("0", "1"), small.notes[0])
    large = plan(model, {"*": 0.5}, kinds=KINDS, example=torch.randn(64, 3, 5, 5), skip="losing", training=False)
    assert [row.name for row in large.sparse] == ["0", "1", "3"]
    assert large.notes == large.skip == ()


# What may be given


def test_positional_and_keyword_arguments():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, times=1, *, more=None):
            for _ in range(times):
                x = self.fc(x)
            return x if more is None else self.fc(more["x"])

    x = torch.randn(3, 4)
    model = Sum()
    for example, calls in (x, 1), ((x,), 1), ((x, 2), 2), ({"x": x, "times": 3}, 3), ({"x": x, "more": {"x": x}}, 2):
        assert dense_adds(summary(model, example=example)) == {"fc": 16 * 3 * calls}


def test_the_models_of_transformers_take_dicts():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **sizes)
    model = transformers.BertForSequenceClassification(config)
    tokens = transformers.BatchEncoding({"input_ids": torch.ones(3, 7, dtype=int), "attention_mask": torch.ones(3, 7)})
    for example in tokens, {"input_ids": tokens["input_ids"]}:
        report = plan(model, 0.1, example=example)
        found = dense_adds(report)
        assert found["bert.encoder.layer.1.intermediate.dense"] == 16 * 32 * 21
        assert found["classifier"] == 16 * 2 * 3
        assert found["bert.embeddings.word_embeddings"] == 0
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    found = dense_adds(plan(gpt2, 0.1, example={"input_ids": tokens["input_ids"]}))
    assert found["transformer.h.0.attn.c_attn"] == 16 * 48 * 21
    assert found["lm_head"] == 16 * 50 * 21


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ([torch.ones(1)], r"a tensor, a tuple .* got list\. Of a batch of a data loader pass the input alone"),
        (np.ones(3), r"got ndarray\. torch\.as_tensor"),
        (3, r"got int\.$"),
        ({0: torch.ones(1)}, r"example must have names of arguments for keys, got 0\. .*\(\{\.\.\.\},\)"),
    ],
)
def test_what_is_no_example_is_refused_before_anything_else(example, message):
    for call in (
        lambda: plan(nn.Linear(2, 2), 7.0, example=example),
        lambda: summary(nn.Linear(2, 2), example=example),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_a_batch_beside_an_example_is_refused():
    with pytest.raises(ValueError, match=r"batch must not be given with an example, .*, got 64\."):
        plan(nn.Linear(2, 2), 0.5, batch=64, example=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"batch must not be given with an example, .*, got 128\."):
        summary(nn.Linear(2, 2), batch=128, example=torch.ones(1, 2))


def test_what_is_wrong_with_other_arguments_is_told_before_the_model_is_run():
    model = Net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was run"))
    for skip in [], "losing":
        with pytest.raises(ValueError, match="density must be in"):
            plan(model, 7.0, skip=skip, example=torch.ones(1, 3, 8, 8))


def test_an_example_that_the_model_cannot_take_says_what_the_model_raised():
    message = (
        r"^example must be what the model can be called with, got \(torch\.float32 \(2, 4\) on cpu\): the model raised "
        r"RuntimeError: .*2x4 and 3x3.*\. A tuple holds positional arguments, a dict those by name\.$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        plan(nn.Linear(3, 3), 0.5, example=torch.ones(2, 4))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(
        ValueError, match=r"got \(input=torch\.float32 \(2, 4\) on cpu, y=3\): the model raised TypeError: .*'y'"
    ):
        summary(nn.Linear(3, 3), example={"input": torch.ones(2, 4), "y": 3})


def test_a_model_that_cannot_be_run_in_training_mode_may_be_in_the_other():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.ones(1, 3)
    with pytest.raises(
        ValueError, match=r"more than 1 value per channel when training, .*here in training mode; model\.eval"
    ):
        plan(model, 0.5, example=x)
    assert plan(model.eval(), 0.5, example=x).layers[0].dense_multiply_adds == 9


def test_a_lazy_model_is_refused():
    with pytest.raises(ValueError, match=r"model must know its shapes, got an uninitialized LazyConv2d in layer '1'\."):
        plan(nn.Sequential(nn.Linear(3, 3), nn.LazyConv2d(3, 3)), 0.5, example=torch.ones(3, 3))


# No trace


def state(model, x):
    """All that a forward pass might change."""
    tensors = [*model.parameters(), *model.buffers(), x]
    grads = [None if p.grad is None else (p.grad, p.grad.clone(), p.grad._version) for p in model.parameters()]
    generators = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    attributes = [{name: id(value) for name, value in vars(module).items()} for module in model.modules()]
    held = [value for module in model.modules() for value in vars(module).values()]
    inside = [[(key, id(each)) for key, each in value.items()] for value in held if isinstance(value, dict)]
    inside += [[*value] for value in held if isinstance(value, (list, set))]
    return [(t, t.detach().clone(), t._version) for t in tensors], grads, generators, attributes, inside


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def identities(found):
    return [id(tensor) for tensor, *_ in found[0]] + [grad and id(grad[0]) for grad in found[1]]


class Rude(Net):
    """Does what no forward pass should."""

    fails = False

    def forward(self, x):
        x.add_(1)
        self.eval()
        self.norm.running_mean = torch.ones(8)
        self.history.clear()
        self.conv.register_forward_hook(lambda *_: None)
        with torch.enable_grad():
            self.fc(torch.ones(1, 8)).sum().backward()
        result = super().forward(x)
        if self.fails:
            raise KeyError("too rude")
        return result


@pytest.mark.parametrize("kind", [Net, Rude])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_the_example_and_the_generators_are_as_they_were(kind, training, fails):
    torch.manual_seed(1)
    model, x = kind().train(training), torch.randn(4, 3, 8, 8)
    model.drop.train()
    model.history.append("before")
    model.fc(torch.randn(2, 8)).sum().backward()
    model.fails = fails
    if fails and kind is Net:
        model.fc.register_forward_hook(lambda *_: 1 / 0)
    before = state(model, x)
    for call in (lambda: plan(model, 0.5, kinds=KINDS, example=x), lambda: summary(model, example=x)):
        if fails:
            with pytest.raises(ValueError, match=r"the model raised (KeyError|ZeroDivisionError)"):
                call()
        else:
            call()
        after = state(model, x)
        assert identities(after) == identities(before)
        assert same(after, before)


def test_buffers_of_parametrizations_are_as_they_were():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    before = [buffer.clone() for buffer in model.buffers()]
    seen(model, torch.ones(2, 4))
    assert len(before) == 2
    assert all(map(torch.equal, model.buffers(), before))


def test_modules_that_share_a_buffer_share_it_in_the_pass_too():
    class Counts(nn.Module):
        def __init__(self, steps):
            super().__init__()
            self.register_buffer("steps", steps)

        def forward(self, x):
            self.steps += 1
            return x.repeat(int(self.steps), 1)

    steps = torch.zeros(())
    model = nn.Sequential(Counts(steps), Counts(steps), nn.Linear(4, 4))
    assert dense_adds(summary(model, example=torch.ones(1, 4))) == {"2": 16 * 2}
    assert model[0].steps is model[1].steps is steps
    assert steps == 0


def test_hooks_of_the_users_run_and_what_they_change_counts():
    model, ran = mlp(6, 6, 6), []
    model[0].register_forward_pre_hook(lambda module, args: (args[0][:2],))
    model[0].register_forward_hook(lambda module, args, output: ran.append(1) or output.repeat(5, 1))
    assert dense_adds(plan(model, 0.5, example=torch.randn(4, 6))) == {"0": 36 * 2, "2": 36 * 10}
    assert ran == [1]


def test_nobody_is_told_that_sparse_layers_were_evaluated():
    model = mlp(20, 20, 20)
    model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 0.3, evolution=SET(interval=1), seed=1)
    model(torch.ones(2, 20)).sum().backward()
    sgd.step()
    layers = [model[0], model[2]]
    kept = [(dict(vars(layer)), layer.indices(), layer.remarks, layer.observer) for layer in layers]
    assert layers[0].remarks is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary(model.eval(), example=torch.ones(2, 20))
    model.train()
    for layer, (attributes, indices, *told) in zip(layers, kept, strict=True):
        assert all(vars(layer)[name] is attributes[name] for name in attributes.keys() | vars(layer).keys())
        assert layer.indices() is indices
        assert [layer.remarks, layer.observer] == told
        assert not layer._forward_hooks
    with pytest.warns(UserWarning, match="The model is evaluated"):
        model.eval()(torch.ones(2, 20))


def test_a_compiled_model_is_run_as_it_is_written():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    ran = []
    compiled = torch.compile(model, backend=lambda graph, inputs: ran.append(1) or graph.forward)
    assert list(dense_adds(summary(compiled, example=torch.ones(3, 4))).values()) == [48, 48]
    assert not ran


# Without memory


def test_a_model_on_the_meta_device_tells_its_sizes_too():
    with torch.device("meta"):
        model = Net()
        huge = nn.Sequential(nn.Linear(10**6, 10**6), nn.Linear(10**6, 10))
    x = torch.randn(4, 3, 10, 9)
    real = plan(Net(), 0.3, kinds=KINDS, example=x)
    for example in x, x.to("meta"):
        assert plan(model, 0.3, kinds=KINDS, example=example).layers == real.layers
    assert plan(huge, {"0": 1e-8}, example=torch.ones(2, 10**6)).layers[0].multiply_adds == 2 * 10**4
    assert {p.device.type for p in (*huge.parameters(), *model.parameters(), *model.buffers())} == {"meta"}


def test_a_model_of_which_a_part_is_on_the_meta_device_comes_back_as_it_was():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4, device="meta")
            self.shift, self.tied = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)
            self.again = nn.Linear(4, 4)
            self.again.weight = self.tied.weight

        def forward(self, x):
            return self.again(self.tied(self.fc(x) + self.shift + torch.arange(4)))

    model = Shifted()
    before = list(model.parameters())
    assert set(dense_adds(plan(model, 0.5, example=torch.ones(2, 4))).values()) == {32}
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert model.again.weight is model.tied.weight


def test_what_depends_on_numbers_cannot_run_on_the_meta_device():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    model = nn.Sequential(Asks(3, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    with pytest.raises(ValueError, match=r"the model raised .*\. On the meta device there are sizes, but no numbers"):
        plan(model, 0.5, example=torch.ones(2, 3))
