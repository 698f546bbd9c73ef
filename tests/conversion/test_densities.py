"""Where training begins denser than it ends: over which layers, and how it is shared out."""

import pytest
import torch
from torch import nn

from sparsify import GMP, GraNet, epsilon, sparsify, uniform
from tests.support.models import mlp

PLACES = {"0": 30 * 20, "2": 30 * 30, "4": 5 * 30}


def begun(density, start_density=0.5, holds="024", **options):
    """Connections at first of each sparse layer, and what they end with."""
    model = mlp(20, 30, 30, 5)
    optimizer = torch.optim.SGD([p for number in holds for p in model[int(number)].parameters()], lr=0.1)
    algorithm = GraNet(until=4, prune_until=3, interval=1, start_density=start_density)
    model, optimizer = sparsify(model, optimizer, density, evolution=algorithm, **options)
    layers = {name: model[int(name)] for name in PLACES if hasattr(model[int(name)], "nnz")}
    first = {name: layer.nnz for name, layer in layers.items()}
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    return first, {name: layer.nnz for name, layer in layers.items()}


def test_over_the_layers_that_a_glob_names():
    assert begun({"2": 0.1}) == ({"2": 450}, {"2": 90})
    assert begun({"2": 0.1}, 1.0) == ({"2": 900}, {"2": 90})


def test_over_the_layers_that_the_optimizer_holds():
    assert begun(0.1, holds="2") == ({"2": 450}, {"2": 90})
    first, last = begun(0.1, holds="02")
    # Erdős-Rényi: in proportion to 50 and 60 units, 750 and 150 connections in all
    assert (first, last) == ({"0": 341, "2": 409}, {"0": 68, "2": 82})


def test_over_the_layers_that_skip_leaves():
    assert sum(begun(0.1, skip=["4"])[0].values()) == 750


def test_a_mapping_is_scaled_by_one_factor():
    first, last = begun({"0": 0.1, "2": 0.2})  # 60 and 180: 750 in all is 3.125 times as many
    assert sum(first.values()) == 750
    assert first == {"0": pytest.approx(187.5, abs=0.5), "2": pytest.approx(562.5, abs=0.5)}
    assert last == {"0": 60, "2": 180}


def test_what_would_pass_one_is_full_and_the_rest_is_solved_again():
    assert begun({"0": 0.9, "2": 0.1}) == ({"0": 600, "2": 150}, {"0": 540, "2": 90})
    first, last = begun(epsilon(2))  # 100, 120 and 70 of 1650; half of these are 825, of which the last takes its 150
    assert first == {"0": 307, "2": 368, "4": 150}
    assert last == {"0": 100, "2": 120, "4": 70}


def test_layers_that_are_full_in_the_end_count():
    assert begun({"4": 1.0, "2": 0.1}) == ({"2": 525 - 150}, {"2": 90})
    first, last = begun(0.1)  # of 1650: 825 at first, 165 in the end; the last layer is never full
    assert (sum(first.values()), sum(last.values())) == (825, 165)


def test_a_distribution_shares_out_the_beginning_too():
    assert begun(0.1, distribution=uniform) == ({"0": 300, "2": 450, "4": 75}, {"0": 60, "2": 90, "4": 15})


def test_no_layer_begins_with_fewer_than_it_ends_with():
    def turned(shapes, density):
        return {"0": 0.9, "2": 0.1, "4": 0.5} if density > 0.4 else {"0": 0.1, "2": 0.4, "4": 0.1}

    first, last = begun(0.2, distribution=turned)
    assert last == {"0": 60, "2": 360, "4": 15}
    assert first == {"0": 540, "2": 360, "4": 75}


@pytest.mark.parametrize("density", [0.3, {"*": 0.3}, {"2": 0.3}, lambda shape: 0.3])
def test_a_beginning_below_the_end_is_refused(density):
    with pytest.raises(ValueError, match=r"start_density must be at least the density in the end, got 0\.2"):
        begun(density, 0.2)
    first, last = begun(density, 0.3)  # equal but for rounding
    assert first == last


def test_gmp_begins_dense_in_the_layers_it_prunes():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    model, _ = sparsify(model, optimizer, {"*": 0.1}, evolution=GMP(until=10))
    assert model[0].nnz == 600
    assert type(model[1]) is nn.Linear
