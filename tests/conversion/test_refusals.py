"""Where no layer would become sparse the first line says why, if there is one reason, and what to do."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparsify import epsilon, plan, sparsify, uniform
from tests.support.models import mlp


class Own(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class Method(nn.Linear):
    def norm(self):
        return self.weight.norm()


def sgd(parameters):
    return torch.optim.SGD(list(parameters), lr=0.1)


def hooked():
    layer = nn.Linear(4, 4)
    layer.weight.register_hook(lambda grad: grad)
    return layer


def tied():
    model = mlp(4, 4, 4)
    model[2].weight = model[0].weight
    return model


def half_frozen():
    model = mlp(4, 4, 4)
    model[0].requires_grad_(False)
    return model


OTHER = "optimizer must hold the parameters of model, got one that holds none of them. Make it of model.parameters()"
CANNOT = "model must hold an nn.Linear that can be sparse, got none"


def held_elsewhere(_):
    return sgd(mlp(4, 4).parameters())


def all_of(model):
    return sgd(model.parameters())


@pytest.mark.parametrize(
    ("make", "optimizer", "options", "first"),
    [
        (lambda: mlp(4, 4, 4), held_elsewhere, {}, OTHER),
        (lambda: mlp(4, 4, 4), held_elsewhere, {"skip": ["0"]}, OTHER),
        (half_frozen, held_elsewhere, {}, OTHER),
        (lambda: mlp(4, 4), lambda m: (held_elsewhere(m),), {}, OTHER),
        (
            lambda: mlp(4, 4, 4),
            lambda m: sgd([m[0].bias]),
            {},
            "optimizer must hold the weight of a linear layer, got one that holds parameters of model, but of all of "
            "its 2 linear layers no weight. Make it of model.parameters()",
        ),
        (
            lambda: mlp(4, 4, 4).requires_grad_(False),
            lambda m: None,
            {},
            "model must have linear layers that train, got all of its 2 linear layers frozen. Call model.",
        ),
        (
            lambda: mlp(4, 4, 4),
            all_of,
            {"skip": "*"},
            "skip must leave a linear layer to become sparse, got globs that",
        ),
        (lambda: mlp(4, 4), all_of, {"density": {}}, "density must name a linear layer, got none."),
        (
            lambda: nn.MultiheadAttention(4, 2),
            lambda m: sgd([m.in_proj_weight]),
            {"skip": "out_proj"},
            "model must hold an nn.Linear that can be sparse, got none of 4: 3 because the optimizer does not hold all",
        ),
        (
            lambda: nn.Sequential(Own(4, 4)),
            all_of,
            {},
            CANNOT + ": of its one linear layer, '0', the reason is: it has a f",
        ),
        (
            lambda: nn.Sequential(Method(4, 4), Method(4, 4)),
            all_of,
            {},
            CANNOT + ": of all of its 2 linear layers the re",
        ),
        (
            lambda: nn.Sequential(hooked()),
            all_of,
            {},
            CANNOT + ": of its one linear layer, '0', the reason is: its wei",
        ),
        (tied, all_of, {}, CANNOT + ": of all of its 2 linear layers the reason is: its weight is tied"),
        (
            lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
            all_of,
            {},
            CANNOT + ": of its one linear layer, '', the",
        ),
        (half_frozen, all_of, {"skip": ["2"]}, CANNOT + " of 2: 1 because it is frozen; 1 because skip names it."),
        (lambda: nn.Conv2d(1, 2, 3), all_of, {}, CANNOT + ": a model whose parameters are in Conv2d. kinds=("),
        (lambda: nn.ReLU(), held_elsewhere, {}, CANNOT + ": a model without parameters."),
        (
            lambda: mlp(4, 4, 4),
            all_of,
            {"density": None, "start": "nonzero"},
            "model must hold an nn.Linear with weights that are zero, got none: all of its 2 linear layers are dense. ",
        ),
    ],
)
def test_the_first_line_says_it(make, optimizer, options, first):
    model = make()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the text is compared below)
        sparsify(model, optimizer(model), **{"density": 0.3, **options})
    line, *table = str(error.value).splitlines()
    assert line.startswith(first)
    assert line.endswith(".") or table
    assert bool(table) == ("because" in line), "the table is where reasons differ"
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize(
    ("density", "error", "says"),
    [
        (
            10,
            ValueError,
            r"got 10\. For 10 % of the weights pass density=0\.1, for the paper's epsilon pass density=eps",
        ),
        (1.5, ValueError, r"pass density=0\.015, for the paper's epsilon pass density=epsilon\(1\.5\)"),
        (784, ValueError, r"got 784\. For the paper's epsilon pass density=epsilon\(784\)\.$"),
        (
            100,
            ValueError,
            r"For 100 % of the weights pass density=1, for the paper's epsilon pass density=epsilon\(100\)\.$",
        ),
        (0, ValueError, r"got 0\. 0 would leave no connection\.$"),
        (-0.1, ValueError, r"got -0\.1\.$"),
        (float("nan"), ValueError, r"got nan\.$"),
        (float("inf"), ValueError, r"got inf\.$"),
        ("0.1", TypeError, r"got '0\.1'\. Pass the number itself: density=0\.1\.$"),
        ("erk", TypeError, r"a function of the shape such as epsilon\(20\), got 'erk'\.$"),
        (torch.tensor(0.1), TypeError, r"got tensor\(0\.1000\)\. Pass the number itself: density=0\.1\.$"),
        (torch.tensor([0.1, 0.2]), TypeError, r"got tensor\(\[0\.1000, 0\.2000\]\)\.$"),
        ([0.1, 0.2], TypeError, r"\{module-name glob: number\} .*, got \[0\.1, 0\.2\]\.$"),
        (True, TypeError, "got True"),
        (1 + 0j, TypeError, r"got \(1\+0j\)\.$"),
        ({"0": 10}, ValueError, r"got 10 for '0'\. For 10 % of the weights pass density=0\.1, for 10 % sparsity"),
        (epsilon, TypeError, r"got the class epsilon\. Call it: density=epsilon\(20\)"),
        (uniform, TypeError, r"got uniform, a distribution\. "),
        (lambda outs, ins: 0.1, TypeError, r"take \(shape\), got <lambda>\(outs, ins\)"),
        (lambda shape: 20, ValueError, r"got 20 in layer '0' from <lambda>\. For 20 % "),
        (lambda shape: None, TypeError, r"got None in layer '0' from <lambda>\."),
    ],
)
def test_a_number_that_is_no_density_is_read_in_every_way(density, error, says):
    with pytest.raises(error, match=rf"^density must .*{says}"):
        plan(mlp(4, 4, 4), density)


@pytest.mark.parametrize(
    ("distribution", "error", "says"),
    [
        ("erk", TypeError, r"got 'erk'\. .*distribution=erdos_renyi\.$"),
        ("ER", TypeError, r"got 'ER'\. .*distribution=erdos_renyi\.$"),
        ("uniform", TypeError, r"got 'uniform'\. Pass the function itself, not its name: from sparsify import uniform"),
        (None, TypeError, "got None"),
        (epsilon(20), TypeError, r"got epsilon\(20\), a function of the shape"),
        (lambda shapes: {}, TypeError, r"take \(shapes, density\), got <lambda>\(shapes\)"),
        (lambda shapes, density: None, TypeError, "give a dict of layer name -> density, got None from <lambda>"),
        (lambda shapes, density: {}, ValueError, r"give every layer a density, got none for \['0', '2'\]"),
    ],
)
@pytest.mark.parametrize("density", [0.3, {"*": 0.3}])
def test_a_distribution_is_checked(distribution, error, says, density):
    if density != 0.3 and says.startswith("give"):
        return  # not asked for a mapping
    with pytest.raises(error, match=rf"^distribution must .*{says}"):
        plan(mlp(4, 4, 4), density, distribution=distribution)


@pytest.mark.parametrize("value", ["20", None, torch.tensor(20), True])
def test_epsilon_must_be_a_number(value):
    with pytest.raises(TypeError, match=r"^epsilon must be a number, got"):
        epsilon(value)


def test_a_single_connection_is_warned_of_once_with_the_number_of_layers():
    with pytest.warns(
        UserWarning, match=r"^2 of 2 layers keep a single connection.*: '0', '2'\. density=eps"
    ) as caught:
        sparsify(mlp(12, 16, 4), None, 1e-9)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"^1 of 2 layers keep a single connection.*: '2'\."):
        plan(mlp(12, 16, 4), {"0": 0.1, "2": 1e-3})
    plan(mlp(12, 16, 4), {"0": 1 / (12 * 16)})  # one connection, as asked for
    plan(mlp(12, 1, 1), {"0": 0.5, "2": 0.1})  # the last has only one place
