"""How this machine is measured. No test looks at a clock: times are made up."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsify import SparseConv2d, SparseLinear
from sparsify._src.conversion import measuring
from sparsify._src.conversion.figures import BATCHES, SIZES, Pair
from sparsify._src.conversion.measuring import Runs, Unsteady
from sparsify._src.conversion.places import Place
from sparsify._src.kernels.window import Window


def ran_once(share=1.0):
    """A timer that runs each variant once, says that it took a millisecond, a second more for each before it, and notes
    how many variants it got."""
    seen = []

    def timer(variants, seconds):
        for run in variants.values():
            run()
        seen.append(len(variants))
        return Runs({name: [1.0 + k] * 3 for k, name in enumerate(variants)}, share)

    return timer, seen


class Clock:
    """Time passes only where somebody says so."""

    now = 0.0

    def __call__(self):
        return self.now


def test_blocks_alternate_and_the_first_run_of_each_is_not_counted():
    clock, order = Clock(), []

    def variant(name, first, others):
        def run():
            clock.now += first if order[-1:] != [name] else others
            order.append(name)

        return run

    variants = {"dense": variant("dense", 9.0, 0.002), "sparse": variant("sparse", 9.0, 0.001)}
    runs = measuring.in_turn(variants, 1e-9, clock, clock)
    assert order == ["dense", "dense", "sparse", "sparse"] * 2
    assert {name: [round(ms, 6) for ms in own] for name, own in runs.times.items()} == {
        "dense": [2.0, 2.0],
        "sparse": [1.0, 1.0],
    }
    assert runs.share == 1


def test_the_share_is_that_of_the_time_in_which_the_thread_ran():
    clock, own = Clock(), Clock()

    def run():
        clock.now += 1
        own.now += 0.25

    assert measuring.in_turn({"": run}, 1, clock, own).share == 0.25


def test_a_grid_has_the_sizes_that_were_asked_for():
    timer, seen = ran_once()
    grid = measuring.grid([32, 128], timer=timer)
    assert seen == [4] * (2 * 2 * len(BATCHES))
    assert np.array_equal(grid[:, :2], np.broadcast_to([1.0, 2.0, 3.0, 4.0], grid[:, :2].shape))
    assert np.isnan(grid[:, 2:]).all()
    assert SIZES[:2] == (32, 128)


def test_a_layer_is_measured_dense_and_sparse():
    timer, seen = ran_once()
    assert measuring.layer(Place(True, 20, 30, 4), 50, timer=timer) == Pair(1.0, {50: 2.0})
    assert seen == [2]


@pytest.mark.parametrize(
    ("dims", "formats"), [(1, 1), (2, 2), (3, 2)], ids=["no other format", "channels_last", "channels_last_3d"]
)
def test_a_convolution_is_measured_in_both_memory_formats_and_the_better_counts(dims, formats):
    window = Window((3,) * dims, (2,) * dims, (1,) * dims, (1,) * dims, 2)
    place = Place(True, 6, 2 * 3**dims, 5, window, (7,) * dims)
    timer, seen = ran_once()
    found = measuring.layer(place, 20, 30, timer=timer)
    assert seen == [formats + 2]
    assert found == Pair(1.0, {20: 1.0 + formats, 30: 2.0 + formats})
    backwards = lambda variants, seconds: Runs({name: [9.0 - k] for k, name in enumerate(variants)}, 1.0)  # noqa: E731
    assert measuring.layer(place, 20, timer=backwards).dense == 10.0 - formats


@pytest.mark.parametrize("training", [False, True])
def test_convolutions_do_what_a_loop_does(training, monkeypatch):
    ran = []
    monkeypatch.setattr(measuring, "_run", lambda *given: lambda: ran.append(given))
    place = Place(training, 6, 36, 5, Window((3, 3), (2, 2), (1, 1), (1, 1), 2), (7, 8))
    for run in measuring.variants_at(place, [20]).values():
        run()
    assert [type(layer) for layer, *_ in ran] == [nn.Conv2d, nn.Conv2d, SparseConv2d]
    assert ran[2][0].nnz == 20
    for layer, x, grad, trains in ran:
        assert (layer(x).shape, x.shape, trains) == (grad.shape, (5, 8, 7, 8), training)
    contiguous = [x.is_contiguous() and grad.is_contiguous() for _, x, grad, _ in ran]
    assert contiguous == [True, False, True]
    assert ran[1][1].is_contiguous(memory_format=torch.channels_last)
    assert ran[1][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_what_takes_too_much_memory_is_not_measured():
    assert measuring.is_small(Place(True, 2**12, 2**13, 128))
    assert not measuring.is_small(Place(True, 2**12, 2**13 + 1, 128))
    window = Window((1, 1), (1, 1), (0, 0), (1, 1))
    assert measuring.is_small(Place(True, 1, 1, 2**5, window, (2**10, 2**10)))
    assert not measuring.is_small(Place(True, 1, 1, 2**6, window, (2**10, 2**10)))


@pytest.mark.parametrize("training", [False, True])
def test_variants_do_what_a_loop_does(training):
    layers = measuring._layers((20, 30), [50])
    assert [type(layer) for layer in layers.values()] == [nn.Linear, SparseLinear]
    assert layers["50"].nnz == 50
    for run in measuring._variants(layers, 4, training).values():
        run()
    assert [layer.bias.grad is not None for layer in layers.values()] == [training] * 2


def test_where_something_else_uses_the_processor_it_is_tried_again_and_given_up():
    timer, seen = ran_once(share=0.6)
    with pytest.raises(Unsteady, match="it had a core for 60% of the time only"):
        measuring.layer(Place(True, 20, 30, 4), 50, timer=timer)
    assert len(seen) == measuring.TRIES
    shares = iter([0.1, 0.99])
    steady = measuring.layer(Place(True, 20, 30, 4), 50, timer=lambda *_: Runs({"a": [2.0], "b": [1.0]}, next(shares)))
    assert steady == Pair(2.0, {50: 1.0})


def test_it_leaves_no_trace():
    timer, _ = ran_once()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        measuring.layer(Place(True, 20, 30, 4), 50, timer=timer)
        measuring.grid([32], timer=timer)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).is_meta
    assert not torch.is_inference_mode_enabled()
    with torch.no_grad():
        measuring.layer(Place(True, 20, 30, 4), 50, timer=timer)
        assert not torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
