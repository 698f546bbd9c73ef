"""What a checkpoint says of evolution: checked entry by entry before anything is loaded."""

import copy
import io
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsify import SET
from sparsify._src.training import last_grown, saved
from sparsify._src.training.explored import PADDING, SIZE, Explored
from sparsify._src.training.last_grown import LastGrown
from sparsify._src.training.progress import Progress
from sparsify._src.training.record import LayerRecord, Record, Spread
from sparsify._src.vectors import generator, sample
from tests.support.comparing import assert_same

SHAPES = {"0": (550, 484), "net.2": (4, 6)}
PLACES = {"0": 266_200, "net.2": 24}


def layer_record(**parts):
    return LayerRecord(
        **{
            **{"evolved": True, "dropped": 7, "grown": 5, "connections": 9, "density": 0.1, "target": 0.05},
            **{"turnover": 0.25, "survived": None, "explored": 0.5, "dead_inputs": 1, "dead_outputs": 0},
            **{"fan_in": Spread(0.0, 1.0, 1.0, 1.5, 2.0), "fan_out": Spread(0.0, 1.0, 1.0, 1.0, 4.0)},
            **{"magnitude": Spread(0.0, 0.5, 1.0, math.inf, math.inf), **parts},
        }
    )


def layers(step):
    return {"0": layer_record(), "net.2": layer_record(evolved=step > 6, dropped=1, grown=1, survived=1 / step)}


def progress(steps=9, seed=5):
    """Evolution of two layers, one with more places seen than a sketch holds."""
    explored = {
        "0": Explored(sample(266_200, 9000, generator(seed)), SHAPES["0"]),
        "net.2": Explored(torch.tensor([0, 3, 5]), SHAPES["net.2"]),
    }
    counts = {"0": (600, 500), "net.2": (3, 3)}
    history = [Record(step, 0.3 / step, 0.1, layers(step)) for step in range(3, steps + 1, 3)]
    last_grown = {
        "0": LastGrown.of(sample(266_200, 3000, generator(seed, "grown"))),
        "net.2": LastGrown.of(torch.tensor([5, 23])),
    }
    return Progress(seed, counts, explored, True, steps, len(history), history, {"net.2"}, last_grown)


def fresh():
    explored = {name: Explored(torch.arange(2), shape) for name, shape in SHAPES.items()}
    return Progress(1, {"0": (2, 2), "net.2": (2, 2)}, explored, False)


def everything(of):
    sketches = {name: (explored.places, explored.sketch) for name, explored in of.explored.items()}
    places = {name: grown.places for name, grown in of.last_grown.items()}
    records = [(record[:-1], {name: tuple(layer) for name, layer in record.layers.items()}) for record in of.history]
    return {**vars(of), "explored": sketches, "last_grown": places, "history": records}


def test_what_is_saved_is_loaded():
    one, other = progress(), fresh()
    other.check_state_dict(one.state_dict(), SHAPES)
    other.load_state_dict(one.state_dict())
    assert_same(everything(other), everything(one))
    assert all(type(record) is Record for record in other.history)
    assert all(type(record.layers["0"]) is LayerRecord for record in other.history)
    assert type(other.history[0].layers["0"].fan_in) is Spread


def test_what_is_loaded_is_a_copy():
    one, other = progress(), fresh()
    state = one.state_dict()
    other.load_state_dict(state)
    state["history"][0]["layers"]["0"]["grown"] = -1
    state["explored"]["0"]["sketch"].zero_()
    state["last_grown"]["0"]["places"].zero_()
    assert_same(everything(other), everything(progress()))


def test_a_load_that_is_interrupted_has_changed_nothing(monkeypatch):
    one, calls = fresh(), iter([Explored.loaded])

    def interrupted(explored, state):
        for loaded in calls:
            return loaded(explored, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Explored, "loaded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.load_state_dict(progress().state_dict())
    assert_same(everything(one), everything(fresh()))


def test_what_is_saved_is_plain_and_of_the_same_keys_and_lengths_at_all_times():
    state = progress().state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), state)

    def lengths(entry):
        if isinstance(entry, dict):
            return {key: lengths(part) for key, part in entry.items()}
        return entry.shape if torch.is_tensor(entry) else type(entry)

    assert lengths(state) == lengths(fresh().state_dict())
    assert state["explored"]["net.2"]["sketch"].shape == (SIZE,)
    assert state["explored"]["net.2"]["count"] == 3
    assert [state["last_grown"][name]["places"].shape for name in SHAPES] == [(last_grown.SIZE,)] * 2
    assert [state["last_grown"][name]["count"] for name in SHAPES] == [last_grown.SIZE, 2]


def test_numbers_of_numpy_are_saved_as_pythons():
    one = progress()
    one.due = np.bool_(True)  # as SET(np.int64(3)) has it
    one.counts["0"] = (np.int64(600), np.int64(500))
    assert_same(one.state_dict(), progress().state_dict())
    assert bool(SET(interval=np.int64(3)).due(3))


def test_lists_serve_where_tuples_are_saved():
    one = progress()
    state = one.state_dict()
    state["counts"] = {name: list(pair) for name, pair in state["counts"].items()}
    state["history"] = list(state["history"])
    state["history"][0]["layers"]["0"]["fan_in"] = list(state["history"][0]["layers"]["0"]["fan_in"])
    other = fresh()
    other.check_state_dict(state, SHAPES)
    other.load_state_dict(state)
    assert_same(everything(other), everything(one))


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, -(2**63), 10**40, -(10**4000)])
def test_every_seed_of_ours_is_taken(seed):
    generator(seed, "evolution")
    one = progress()
    one.seed = seed
    other = fresh()
    other.check_state_dict(one.state_dict(), SHAPES)
    other.load_state_dict(one.state_dict())
    assert other.seed == seed


def sketch(change=None, name="net.2", **rest):
    """The saved sketch of a layer, changed in place."""
    state = progress().explored[name].state_dict()
    if change is not None:
        change(state["sketch"])
    return {**state, **rest}


def fake():
    with FakeTensorMode():
        return torch.zeros(SIZE, dtype=torch.int64)


def record(**parts):
    return {**progress().state_dict()["history"][2], **parts}


def layer(**parts):
    """A record whose layer "net.2" has these parts."""
    own = record()
    return record(layers={**own["layers"], "net.2": {**own["layers"]["net.2"], **parts}})


NET = '["history"][2]["layers"]["net.2"]'


def places_of(*places):
    return saved.padded("places", torch.tensor(places), last_grown.SIZE)["places"]


def grown_last(**parts):
    return {**progress().last_grown["net.2"].state_dict(), **parts}


ANYTHING = {
    "None": None,
    "a word": "no",
    "a float": 2.5,
    "a list": [],
    "a nested list": [None, ["x"]],
    "a dict": {},
    "NumPy's": np.int64(1),
    "a number": torch.tensor(1),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a long sparse tensor": torch.zeros(SIZE, dtype=torch.int64).to_sparse(),
    "a meta tensor": torch.zeros(SIZE, dtype=torch.int64, device="meta"),
    "a fake tensor": fake(),
    "a zero tensor": torch._efficientzerotensor(SIZE, dtype=torch.int64),
    "a negative view": torch._neg_view(torch.zeros(SIZE, dtype=torch.int64)),
    "complex numbers": torch.zeros(SIZE, dtype=torch.complex64),
    "a vector": torch.zeros(3),
    "not a number": math.nan,
    "-1": -1,
    "more than can be said": -(10**5000),
    "a type": torch.Tensor,
}
ENTRIES = [
    *(("step",), ("evolutions",), ("seed",), ("due",), ("counts",), ("explored",), ("history",)),
    *(("counts", "0"), ("counts", "net.2"), ("counts", "0", 0), ("counts", "0", 1)),
    *(("explored", "0"), ("explored", "0", "sketch"), ("explored", "net.2", "sketch"), ("explored", "0", "count")),
    *(("last_grown",), ("last_grown", "0"), ("last_grown", "0", "places"), ("last_grown", "0", "count")),
    *(("history", 1), ("history", 1, "step"), ("history", 1, "drop_fraction"), ("history", 1, "density")),
    *(("history", 1, "layers"), ("history", 1, "layers", "0")),
    *(("history", 2, "layers", "net.2", name) for name in LayerRecord._fields),
]


def key_of(path):
    return 'state_dict["sparsify"]' + "".join(f'["{part}"]' if isinstance(part, str) else f"[{part}]" for part in path)


def changed(path, value):
    state = copy.deepcopy(progress().state_dict())
    state["counts"] = {name: list(pair) for name, pair in state["counts"].items()}
    state["history"] = list(state["history"])
    place = state
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return state


def refuse(state, key):
    """Refused with a ValueError that begins with `key`, and nothing changed."""
    one, before = progress(6), everything(progress(6))
    with pytest.raises(ValueError, match="^" + re.escape(key)) as error:
        one.check_state_dict(state, SHAPES)
    assert type(error.value) is ValueError
    assert len(str(error.value)) < 600
    assert_same(everything(one), before)


@pytest.mark.parametrize("path", ENTRIES, ids=key_of)
@pytest.mark.parametrize("kind", ANYTHING)
def test_anything_at_all_in_any_place_is_refused_by_its_name(path, kind):
    if (path[-1], kind) in [("seed", "-1"), ("survived", "None")]:
        return  # a seed like any other, and what is so where nothing had grown
    key = key_of(path[:-1] if path[:1] == ("counts",) and isinstance(path[-1], int) else path)
    refuse(changed(path, ANYTHING[kind]), key)


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("counts", "0"), (600, -5000), '["counts"]["0"] must be two whole numbers in [0, 266200], got (600, -5000).'),
        (("counts", "0"), (10**9, 10**9), '["counts"]["0"] must be two whole numbers in [0, 266200]'),
        (("counts", "0"), (500, 600), '["counts"]["0"] must not rise from the first count to the last, got (500, 600)'),
        (("counts", "0"), (True, False), '["counts"]["0"]'),
        (("counts", "0"), (600.0, 500), '["counts"]["0"]'),
        (("counts", "0"), (600, 500, 400), '["counts"]["0"]'),
        (("counts", "net.2"), (25, 3), '["counts"]["net.2"] must be two whole numbers in [0, 24]'),
        (("counts", "1"), (3, 3), "[\"counts\"] must be of the sparse layers ['0', 'net.2']"),
        (("counts",), {"0": (600, 500)}, '["counts"]'),
        (("step",), True, '["step"] must be a whole number in [0, 9223372036854775807], got True.'),
        (("step",), -7, '["step"]'),
        (("step",), 2**63, '["step"]'),
        (("step",), 8, '["history"][2]["step"] must be a whole number in [6, 8]'),
        (("evolutions",), False, '["evolutions"]'),
        (("evolutions",), 4, '["history"] must have 4 records ("evolutions"), got 3.'),
        (("seed",), True, '["seed"]'),
        (("due",), 1, '["due"] must be True or False, got 1.'),
        (
            ("history",),
            [{"step": 1}] * 3,
            "[\"history\"][0] must be a dict of ['step', 'drop_fraction', 'density', 'layers'], got ['step'].",
        ),
        (("history",), {0: record(), 1: record(), 2: record()}, '["history"] must be a tuple or a list'),
        (("history", 2), record(more=1), '["history"][2]'),
        (("history", 2), tuple(record().values()), '["history"][2]'),
        (("history", 2), record(step=5), '["history"][2]["step"]'),
        (("history", 2), record(step=10), '["history"][2]["step"]'),
        (("history", 2), record(step=9.0), '["history"][2]["step"]'),
        (("history", 2), record(drop_fraction=1.01), '["history"][2]["drop_fraction"]'),
        (("history", 2), record(drop_fraction=Fraction(1, 2)), '["history"][2]["drop_fraction"]'),
        (("history", 2), record(drop_fraction=True), '["history"][2]["drop_fraction"]'),
        (("history", 2), record(density=1.01), '["history"][2]["density"]'),
        (("history", 2), record(layers={}), "[\"history\"][2][\"layers\"] must be of the sparse layers ['0', 'net.2']"),
        (("history", 2), record(layers={"0": layers(9)["0"]._asdict()}), '["history"][2]["layers"]'),
        (("history", 2), layer(more=1), f"{NET} must be a dict of ['evolved', 'dropped', "),
        (("history", 2), layer(evolved=1), f'{NET}["evolved"] must be True or False, got 1.'),
        (("history", 2), layer(dropped=25), f'{NET}["dropped"] must be a whole number in [0, 24], got 25.'),
        (("history", 2), layer(grown=True), f'{NET}["grown"]'),
        (("history", 2), layer(connections=1.0), f'{NET}["connections"]'),
        (("history", 2), layer(dead_inputs=7), f'{NET}["dead_inputs"] must be a whole number in [0, 6]'),
        (("history", 2), layer(dead_outputs=5), f'{NET}["dead_outputs"] must be a whole number in [0, 4]'),
        (("history", 2), layer(density=1), f'{NET}["density"] must be a number in [0, 1], got 1.'),
        (("history", 2), layer(target=-0.1), f'{NET}["target"]'),
        (("history", 2), layer(turnover=1.1), f'{NET}["turnover"]'),
        (("history", 2), layer(survived=-0.1), f'{NET}["survived"] must be None or a number in [0, 1], got -0.1.'),
        (("history", 2), layer(survived=math.nan), f'{NET}["survived"]'),
        (("history", 2), layer(explored=math.nan), f'{NET}["explored"]'),
        (("history", 2), layer(fan_in=(1.0,) * 4), f'{NET}["fan_in"] must be five numbers in [0, 6] that never fall'),
        (("history", 2), layer(fan_in=(0.0, 2.0, 1.0, 3.0, 4.0)), f'{NET}["fan_in"]'),
        (("history", 2), layer(fan_in=(1,) * 5), f'{NET}["fan_in"]'),
        (("history", 2), layer(fan_out=(1.0,) * 4 + (4.5,)), f'{NET}["fan_out"] must be five numbers in [0, 4]'),
        (("history", 2), layer(fan_out=(math.nan,) * 5), f'{NET}["fan_out"]'),
        (
            ("history", 2),
            layer(magnitude=(-0.1,) * 5),
            f'{NET}["magnitude"] must be five numbers that are not negative',
        ),
        (("last_grown", "1"), grown_last(), '["last_grown"]'),
        (("last_grown", "net.2"), grown_last(more=1), '["last_grown"]["net.2"] must hold "places" and "count"'),
        (
            ("last_grown", "net.2"),
            grown_last(count=1),
            '["last_grown"]["net.2"]["places"] must be -1 from 1 ("count") on',
        ),
        (("last_grown", "net.2"), grown_last(count=3), '["last_grown"]["net.2"]["places"] must begin with 3 ("count")'),
        (
            ("last_grown", "net.2"),
            grown_last(count=25),
            '["last_grown"]["net.2"]["count"] must be a whole number in [0, 24]',
        ),
        (
            ("last_grown", "net.2"),
            grown_last(places=places_of(5, 24)),
            '["last_grown"]["net.2"]["places"] must begin with 2',
        ),
        (
            ("last_grown", "net.2"),
            grown_last(places=places_of(23, 5)),
            '["last_grown"]["net.2"]["places"] must begin with 2',
        ),
        (
            ("last_grown", "net.2"),
            grown_last(places=places_of(-2, 5)),
            '["last_grown"]["net.2"]["places"] must begin with 2',
        ),
        (
            ("last_grown", "net.2"),
            grown_last(places=places_of(5, 6)[:9]),
            '["last_grown"]["net.2"]["places"] must be a plain',
        ),
        (("explored", "1"), sketch(), '["explored"]'),
        (("explored", "net.2"), sketch(more=1), '["explored"]["net.2"] must hold "sketch" and "count"'),
        (("explored", "net.2"), sketch(count=2), '["explored"]["net.2"]["sketch"] must be -1 from 2 ("count") on'),
        (("explored", "net.2"), sketch(count=4), '["explored"]["net.2"]["sketch"] must begin with 4 ("count") hashes'),
        (("explored", "net.2"), sketch(count=25), '["explored"]["net.2"]["count"] must be a whole number in [0, 24]'),
        (("explored", "net.2"), sketch(count=True), '["explored"]["net.2"]["count"]'),
        (("explored", "0"), sketch(name="0", count=SIZE + 1), '["explored"]["0"]["count"]'),
        (("explored", "net.2"), sketch(lambda s: s[-1:].zero_()), '["explored"]["net.2"]["sketch"] must be -1 from 3'),
        (
            ("explored", "net.2"),
            sketch(lambda s: s[:3].copy_(s[:3].flip(0))),
            '["explored"]["net.2"]["sketch"] must be',
        ),
        (("explored", "net.2"), sketch(lambda s: s[1].copy_(s[0])), '["explored"]["net.2"]["sketch"] must begin'),
        (
            ("explored", "net.2", "sketch"),
            sketch()["sketch"][:3],
            '["explored"]["net.2"]["sketch"] must be a plain vec',
        ),
        (("explored", "net.2", "sketch"), sketch()["sketch"].repeat(2), '["explored"]["net.2"]["sketch"]'),
        (("explored", "net.2", "sketch"), sketch()["sketch"].double(), '["explored"]["net.2"]["sketch"]'),
        (("explored", "net.2", "sketch"), sketch()["sketch"].int(), '["explored"]["net.2"]["sketch"]'),
        (("explored", "net.2", "sketch"), sketch()["sketch"].view(64, 64), '["explored"]["net.2"]["sketch"]'),
        (("explored", "net.2", "sketch"), sketch()["sketch"].tolist(), '["explored"]["net.2"]["sketch"]'),
        (("explored", "net.2", "sketch"), sketch()["sketch"].numpy(), '["explored"]["net.2"]["sketch"]'),
        (
            ("surplus",),
            1,
            " must hold ['counts', 'due', 'evolutions', 'explored', 'history', 'last_grown', 'seed', 'step', 'trained",
        ),
    ],
)
def test_what_is_wrong_is_named(path, value, key):
    refuse(changed(path, value), 'state_dict["sparsify"]' + key)


@pytest.mark.parametrize("key", ["step", "evolutions", "seed", "due", "counts", "explored", "last_grown", "history"])
def test_what_is_missing_is_named(key):
    state = progress().state_dict()
    del state[key]
    refuse(state, "state_dict[\"sparsify\"] must hold ['counts', ")


@pytest.mark.parametrize("state", [None, "no", [], torch.zeros(3), 1])
def test_what_is_no_dict_is_refused(state):
    refuse(state, 'state_dict["sparsify"] must be a dict')


def test_every_other_sketch_that_passes_is_one_that_could_be():
    """A sketch on the layer's own places, in a strided view, in other keys' company: all as good as what was saved."""
    wide = torch.empty(2 * SIZE, dtype=torch.int64)[::2].copy_(sketch()["sketch"])
    state = {**changed(("explored", "net.2", "sketch"), wide), "topology": {}, "schedules": {}}
    one = fresh()
    one.check_state_dict(state, SHAPES)
    one.load_state_dict(state)
    assert_same(everything(one), everything(progress()))


entries = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10) | st.floats() | st.text(max_size=3) | st.just(2**62),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["0", "net.2", "step", ""]), part),
    max_leaves=4,
)


@given(st.sampled_from(ENTRIES), entries)
@settings(deadline=None, max_examples=200)
def test_a_changed_checkpoint_is_loaded_whole_or_refused_by_name(path, value):
    state, one = changed(path, value), fresh()
    before = everything(fresh())
    try:
        one.check_state_dict(state, SHAPES)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert_same(everything(one), before)
    if refusal:
        assert refusal.startswith('state_dict["sparsify"]')
        return
    one.load_state_dict(state)
    assert all(1 >= explored.share >= 0 for explored in one.explored.values())
    assert len(one.history) == one.evolutions
    assert_same(one.state_dict()["explored"]["0"]["sketch"], state["explored"]["0"]["sketch"])
    assert PADDING not in one.explored["net.2"].sketch
