import math

import pytest

from sparsify import epsilon, erdos_renyi, uniform

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def test_erdos_renyi_of_lenet():
    densities = erdos_renyi(LENET, 0.1)
    assert densities["fc1"] == pytest.approx(0.0796, abs=5e-5)
    assert densities["fc2"] == pytest.approx(0.2302, abs=5e-5)
    assert densities["fc3"] == 1.0


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1, 0.3, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("distribution", [uniform, erdos_renyi])
def test_the_global_budget_holds(distribution, density):
    densities = distribution(LENET, density)
    places = {name: shape[0] * shape[1] for name, shape in LENET.items()}
    kept = sum(densities[name] * places[name] for name in LENET)
    assert math.isclose(kept, density * sum(places.values()), rel_tol=1e-12)
    assert all(0 < value <= 1 for value in densities.values())


def test_epsilon_gives_each_unit_about_as_many_connections_whatever_the_size():
    assert epsilon(20)((1000, 784)) == pytest.approx(20 * 1784 / 784_000)
    assert epsilon(20)((10, 10)) == 1.0
    with pytest.raises(ValueError, match="epsilon must be positive"):
        epsilon(0)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_density_out_of_range_is_an_error(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        erdos_renyi(LENET, density)


def test_a_percentage_gets_the_way_out():
    with pytest.raises(
        ValueError, match=r"got 90. For 90 % of the weights pass density=0.9, for 90 % sparsity pass density=0.1."
    ):
        uniform(LENET, 90)


@pytest.mark.parametrize("density", [True, "0.1", None])
def test_density_of_another_type_is_an_error(density):
    with pytest.raises(TypeError, match="density must be a number"):
        uniform(LENET, density)


def test_no_layers_no_densities():
    assert erdos_renyi({}, 0.1) == {}
