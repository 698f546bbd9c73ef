import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsify._src.layers.samples import Sample, Samples, compare, holds_share, is_alike, spread
from sparsify._src.native import library
from tests.support.marks import PATHS


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(library, "LIBRARY", None)


def vectors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator).to(dtype) for n in (1000, 3, 64, 0)]


def watched(parts):
    return Samples([Sample(part, spread(len(part), 64, part.device)) for part in parts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_written_where_they_look_is_seen_until_they_are_taken_again(dtype):
    parts = vectors(dtype)
    samples = watched(parts)
    assert not samples.have_changed()
    for number, place in (0, 0), (1, 2), (2, 63), (0, 984):
        parts[number].data[place] += 1
        assert samples.have_changed()
        samples.take()
        assert not samples.have_changed()
    parts[0].data[1] += 1  # not looked at
    assert not samples.have_changed()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "data", p.data + 1),
        lambda p: setattr(p, "data", p.data[:500].clone()),
        lambda p: setattr(p, "data", torch.zeros(0)),
        lambda p: setattr(p, "data", torch.zeros(2, 500)),
        lambda p: setattr(p, "data", (p.data + 1).double()),
        lambda p: setattr(p, "data", torch.stack([p.data + 1, p.data], 1)[:, 0]),
        lambda p: p.untyped_storage().resize_(0),
    ],
)
def test_other_memory_is_seen_and_never_read_out_of_bounds(change):
    parts = [nn.Parameter(part) for part in vectors()]
    samples = watched(parts)
    samples.take()
    change(parts[0])
    for _ in range(3):
        assert samples.have_changed()
        again = torch.full((125,), 7.0)  # may take the place of what was given back
        assert samples.have_changed()
        del again
    parts[0].data = torch.ones(1000)
    samples.take()
    assert not samples.have_changed()


def test_equal_numbers_at_another_place_are_no_change():
    part = nn.Parameter(vectors()[0])
    samples = watched([part])
    for _ in range(3):
        part.data = part.data.clone()
        assert not samples.have_changed()


def test_positions_are_evenly_spaced():
    assert spread(10, 5, torch.device("cpu")).tolist() == [0, 2, 4, 6, 8]
    assert spread(3, 5, torch.device("cpu")).tolist() == [0, 1, 2]
    assert spread(0, 5, torch.device("cpu")).tolist() == []


@pytest.mark.parametrize("count", [64, 256])
@pytest.mark.parametrize("part", [1e-3, 0.05, 0.7, 1.0])
def test_a_share_is_found_however_small_and_nothing_else_is(part, count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(50):
        before, source, other = torch.randn(3, count, dtype=torch.float64, generator=generator)
        assert holds_share((1 - part) * before + part * source, before, source)
        for own in (0.3 * before, before + 0.5 * other, before.clamp(-0.1, 0.1), other, before):
            assert not holds_share(own, before, source)
        assert is_alike(before + 0.5 * part * source, before)
        assert not is_alike(other, before)


def test_the_comparison_is_that_of_numpy():
    generator = np.random.default_rng(0)
    now, before, source = generator.normal(size=(3, 40))
    now = now + 0.6 * before + 0.4 * source + 3

    def rest(vector):
        design = np.stack([before, np.ones(40)], 1)
        return vector - design @ np.linalg.lstsq(design, vector, rcond=None)[0]

    found = compare(*map(torch.from_numpy, (now, before, source)))
    assert found == pytest.approx((np.corrcoef(now, before)[0, 1], np.corrcoef(rest(now), rest(source))[0, 1]))


@pytest.mark.parametrize(
    "numbers", [[0.0] * 8, [1.0] * 8, [math.nan] * 8, [math.inf, *range(7)], [1e-40] * 8, [1.0, 2.0, 3.0], []]
)
def test_what_says_nothing_is_like_nothing(numbers):
    odd, plain = torch.tensor(numbers, dtype=torch.float64), torch.arange(len(numbers)).double().square()
    for first, second in ((odd, plain), (plain, odd), (odd, odd)):
        if len(numbers) < 4 or not math.isfinite(float(odd.sum())) or first is odd:
            assert not is_alike(first, second)
        assert not holds_share(plain, plain, odd)
        assert not holds_share(odd, plain, plain)
