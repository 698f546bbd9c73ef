import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify._src import topology, vectors
from sparsify._src.native import library
from sparsify._src.vectors import generator, lowest, sample, sample_outside
from tests.support.comparing import assert_same
from tests.support.marks import PATHS


@given(st.integers(1, 400), st.data())
@settings(deadline=None, max_examples=100)
def test_sample_gives_exactly_count_distinct_sorted_numbers(total, data):
    count = data.draw(st.integers(0, total))
    picked = sample(total, count, generator(total, count))
    assert len(picked) == count
    assert (torch.diff(picked) > 0).all()
    assert count == 0 or (picked[0] >= 0 and picked[-1] < total)


def test_sample_is_exact_far_beyond_memory():
    picked = sample(10**15, 10_000, generator(1))
    assert len(picked) == 10_000
    assert (torch.diff(picked) > 0).all()
    assert picked[-1] > 0.9 * 10**15


@pytest.mark.parametrize(("total", "count"), [(6, 2), (40, 3)])  # by permutation; by rejection
def test_sample_is_uniform(total, count):
    tally = torch.zeros(total)
    draws = 6000
    stream = generator("uniform")
    for _ in range(draws):
        tally[sample(total, count, stream)] += 1
    expected = draws * count / total
    chi_squared = ((tally - expected) ** 2 / expected).sum()
    assert chi_squared < 2.2 * total  # far beyond the 99.9th percentile of a fair sample


def test_sample_refuses_more_than_there_are():
    with pytest.raises(ValueError, match=r"count must be in \[0, 3\], got 4"):
        sample(3, 4, generator())


def test_same_key_same_stream_other_key_other_stream():
    assert torch.equal(sample(10**6, 100, generator(1, "a")), sample(10**6, 100, generator(1, "a")))
    assert not torch.equal(sample(10**6, 100, generator(1, "a")), sample(10**6, 100, generator(1, "b")))


@given(st.integers(1, 200), st.data())
@settings(deadline=None, max_examples=100)
def test_sample_outside_stays_outside(total, data):
    taken = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0, total - taken))
    flat = sample(total, taken, generator("taken", total, taken))
    grown = sample_outside(flat, total, count, generator("grown", total))
    assert len(set(grown.tolist())) == count
    assert not set(grown.tolist()) & set(flat.tolist())
    assert grown.tolist() == sorted(grown.tolist())
    assert all(0 <= place < total for place in grown.tolist())


def test_sample_outside_can_fill_the_last_place():
    assert sample_outside(torch.tensor([0, 1, 3]), 4, 1, generator()).tolist() == [2]


def test_merge_of_survivors_and_grown():
    flat, survives, grown = torch.tensor([1, 4, 9]), torch.tensor([True, False, True]), torch.tensor([0, 5, 11])
    merged, origin = vectors.merge(flat, survives, grown)
    assert merged.tolist() == [0, 1, 5, 9, 11]
    assert origin.tolist() == [3, 0, 4, 2, 5]
    merged, origin = vectors.merge(flat, survives, grown[:0])
    assert (merged.tolist(), origin.tolist()) == ([1, 9], [0, 2])


def by_numpy(flat, shape, survives, ranks, scores, count):
    """What the functions of a topology give, from their definitions."""
    total, row, col = shape[0] * shape[1], flat // shape[1], flat % shape[1]
    order = np.lexsort((row, col))
    begins = [
        np.concatenate([[0], np.cumsum(np.bincount(index, minlength=length))])
        for index, length in zip((row, col), shape, strict=True)
    ]
    grown = np.setdiff1d(np.arange(total), flat)[ranks]
    kept = np.concatenate([np.flatnonzero(survives), len(flat) + np.arange(len(grown))])
    origin = kept[np.concatenate([flat, grown])[kept].argsort()]
    rising = sorted(range(len(flat)), key=lambda place: (np.isnan(scores[place]), scores[place], place))
    weakest = np.array(sorted(rising[:count]), dtype=np.int64)
    return {
        "index": (begins[0], col, begins[1], row[order], order),
        "from_csr": flat,
        "free_places": grown,
        "merge": (np.concatenate([flat, grown])[origin], origin),
        "lowest": weakest,
    }


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([torch.int32, torch.int64]))
@settings(deadline=None, max_examples=200)
@pytest.mark.parametrize("path", PATHS)
def test_every_function_gives_what_numpy_gives(path, outs, ins, seed, dtype):
    random, shape = np.random.default_rng(seed), (outs, ins)
    flat = np.sort(random.permutation(outs * ins)[: random.integers(outs * ins + 1)])
    survives, count = random.random(len(flat)) < 0.7, len(flat) // 3
    free = outs * ins - len(flat)
    ranks = np.sort(random.permutation(free)[: free // 2])
    scores = random.choice([*range(-9, 9), -0.0, np.inf, -np.inf, np.nan], len(flat)).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "index_dtype", lambda nnz, shape: dtype)
        patch.setattr(library, "ENOUGH", 0)  # several threads
        if path == "plain":
            patch.setattr(library, "LIBRARY", None)
        places, stays = torch.from_numpy(flat), torch.from_numpy(survives)
        indices = topology.index(places, shape)
        grown = vectors.free_places(places, torch.from_numpy(ranks))
        found = {
            "index": indices,
            "from_csr": topology.from_csr(indices.crow, indices.col, shape),
            "free_places": grown,
            "merge": vectors.merge(places, stays, grown),
            "lowest": lowest(torch.from_numpy(scores), count),
        }
        narrow = lowest(torch.from_numpy(scores).float(), count)
    assert {index.dtype for index in indices} == {dtype}
    expected = by_numpy(flat, shape, survives, ranks, scores, count)
    for name, right in expected.items():
        np.testing.assert_equal(found[name], right, name)
    np.testing.assert_equal(narrow, expected["lowest"])


def test_csr_and_csc_of_a_small_topology():
    # . x . x
    # . . . .
    # x x . .
    flat, shape = torch.tensor([1, 3, 8, 9]), (3, 4)
    crow, col, ccol, csc_row, csc_order = topology.index(flat, shape)
    assert crow.tolist() == [0, 2, 2, 4]
    assert col.tolist() == [1, 3, 0, 1]
    assert topology.rows(crow, 4).tolist() == [0, 0, 2, 2]
    assert topology.from_csr(crow, col, shape).tolist() == flat.tolist()
    assert ccol.tolist() == [0, 1, 3, 3, 4]
    assert csc_row.tolist() == [2, 0, 2, 0]
    assert csc_order.tolist() == [2, 0, 3, 1]
    assert {index.dtype for index in topology.index(flat, shape)} == {torch.int32}


@pytest.mark.parametrize(
    ("crow", "col", "message"),
    [
        ([0, 1], [0, 1], "crow must have out_features"),
        ([0, 1, 2], [0], "col must have one entry for each of the 2 values"),
        ([0, 2, 1], [0, 1], "crow must rise"),
        ([1, 1, 2], [0, 1], "crow must rise"),
        ([0, -1, 2], [0, 1], "crow must rise"),
        ([0, 1, 2], [0, 3], "col must be in"),
        ([0, 1, 2], [-1, 0], "col must be in"),
        ([0, 2, 2], [1, 1], "col must rise strictly"),
        ([0, 2, 2], [1, 0], "col must rise strictly"),
    ],
)
def test_check_csr_names_what_is_wrong(crow, col, message):
    with pytest.raises(ValueError, match=message):
        topology.check_csr(torch.tensor(crow), torch.tensor(col), 2, (2, 3))


def test_check_csr_refuses_floats_and_accepts_int32():
    with pytest.raises(ValueError, match="int32 or int64"):
        topology.check_csr(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1]), 2, (2, 3))
    topology.check_csr(torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1]), 2, (2, 3))


def test_fingerprint_tells_topologies_apart():
    one = topology.index(torch.tensor([1, 3, 8]), (3, 4))[:2]
    other = topology.index(torch.tensor([1, 3, 9]), (3, 4))[:2]
    assert vectors.fingerprint(*one) == vectors.fingerprint(*(index.clone() for index in one))
    assert vectors.fingerprint(*one) != vectors.fingerprint(*other)


def test_a_fingerprint_sees_every_bit():
    tensor = torch.tensor([1.0, 0.0])
    assert vectors.fingerprint(tensor) == vectors.fingerprint(tensor.clone())
    assert vectors.fingerprint(tensor) != vectors.fingerprint(torch.tensor([1.0, -0.0]))
    assert vectors.fingerprint(tensor, tensor) != vectors.fingerprint(tensor)
    half = tensor.bfloat16()
    assert vectors.fingerprint(half) == vectors.fingerprint(half[:, None].t()[0])
    index = torch.arange(5)
    assert vectors.fingerprint(index) == vectors.fingerprint(index.int())


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([3.0, 1.0, 2.0], 2, [1, 2]),
        ([1.0, 1.0, 1.0, 0.0], 2, [0, 3]),
        ([1.0, 2.0], 0, []),
        ([1.0, 2.0], 2, [0, 1]),
        ([], 0, []),
    ],
)
def test_lowest_breaks_ties_by_position(scores, count, expected):
    assert lowest(torch.tensor(scores), count).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("path", PATHS)
def test_lowest_refuses_more_than_there_are(dtype, path, monkeypatch):
    if path == "plain":
        monkeypatch.setattr(library, "LIBRARY", None)
    with pytest.raises(ValueError, match=r"^scores must be a vector of at least 4, got \(3,\)\.$"):
        lowest(torch.ones(3, dtype=dtype), 4)
    with pytest.raises(ValueError, match=r"^scores must be a vector of at least 2, got \(4, 2\)\.$"):
        lowest(torch.ones(4, 2, dtype=dtype), 2)


def test_strided_vectors_merge_like_contiguous_ones():
    flat, survives, grown = torch.tensor([1, 4, 9]), torch.tensor([True, False, True]), torch.tensor([0, 5, 11])
    strided = [vector.repeat_interleave(2)[::2] for vector in (flat, survives, grown)]
    assert_same(vectors.merge(*strided), vectors.merge(flat, survives, grown))
    assert vectors.free_places(strided[0], strided[2]).tolist() == [0, 7, 14]
