"""Averages in models that are no copies, as far as we know: they are warned of, once, and nothing else is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsify import GMP, SET, GraNet, RigL, SparseLinear, Static, follow, sparsify
from tests.support.averages import UPDATES, data_copy, lerp, pair, step, topologies
from tests.support.comparing import assert_same
from tests.support.models import mlp

ALIEN = r"Another model gets the values of '0', '2', or averages of them, parameter by parameter"
ANY = r"Another model gets the values of '"


def untrained(topology="same"):
    """A model without an optimizer: of the topology of `pair()`, or of another."""
    torch.manual_seed(21)
    target = mlp(12, 16, 4, dtype=torch.float64)
    return sparsify(target, None, 0.35, seed=3 if topology == "same" else 77)[0]


def run(policy, optimizer, target, update, numbers, every=1):
    for number in numbers:
        step(policy, optimizer, number)
        if number % every == 0:
            update(target, policy)


def hard_copy(target, policy):
    for q, p in zip(target.parameters(), policy.parameters(), strict=True):
        q.data.copy_(p.data)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("topology", ["same", "another"])
@pytest.mark.parametrize("begins", ["with a copy", "as it is"])
@pytest.mark.parametrize("evolution", [SET(interval=4), RigL(interval=4)])
def test_soft_updates_parameter_by_parameter_are_warned_of_once(update, topology, begins, evolution):
    policy, optimizer = pair(evolution)
    target = untrained(topology)
    if begins == "with a copy":
        hard_copy(target, policy)
    with pytest.warns(UserWarning, match=ANY) as seen:
        run(policy, optimizer, target, update, range(18))
    assert len(seen) == 1
    assert seen[0].filename.endswith("averages.py")  # where the step is
    assert "load model.state_dict() into it" in str(seen[0].message).lower()
    assert "sparsify.follow(average, model)" in str(seen[0].message)


@pytest.mark.parametrize("tau", [0.005, 0.5])
@pytest.mark.parametrize("topology", ["same", "another"])
def test_however_slow_the_average_is(tau, topology):
    policy, optimizer = pair(SET(interval=10))
    target = untrained(topology)

    @torch.no_grad()
    def update(target, policy):
        for q, p in zip(target.parameters(), policy.parameters(), strict=True):
            q.mul_(1 - tau).add_(p, alpha=tau)

    with pytest.warns(UserWarning, match=ALIEN):
        run(policy, optimizer, target, update, range(10))


def test_hard_updates_parameter_by_parameter_are_warned_of():
    policy, optimizer = pair()
    target = untrained()
    with pytest.warns(UserWarning, match=ANY) as seen:
        run(policy, optimizer, target, hard_copy, range(20), every=5)
    assert len(seen) == 1


def test_a_hard_copy_of_another_topology_is_warned_of_at_the_first_step():
    policy, optimizer = pair(Static())
    target = untrained("another")
    hard_copy(target, policy)
    with pytest.warns(UserWarning, match=ALIEN):
        step(policy, optimizer, 0)


def test_an_average_in_a_model_that_was_unpickled():
    policy, optimizer = pair()
    for number in range(5):
        step(policy, optimizer, number)
    target = pickle.loads(pickle.dumps(policy))
    with pytest.warns(UserWarning, match=ANY):
        run(policy, optimizer, target, lerp, range(5, 14))


def test_the_way_out_is_right():
    policy, optimizer = pair()
    for loads in True, False:
        target = untrained()
        if loads:
            target.load_state_dict(policy.state_dict())
        else:
            hard_copy(target, policy)
            follow(target, policy)
            for number in range(9):
                step(policy, optimizer, number)
                lerp(target, policy)
            assert_same(topologies(target), topologies(policy))


@pytest.mark.parametrize(
    "evolution", [SET(interval=3), RigL(interval=3), GMP(until=16, interval=3), GraNet(until=16, interval=3), Static()]
)
def test_models_of_other_folds_are_silent(evolution):
    """Of one seed, made at once or one after the other, kept alive, trained or not, initialised before training."""
    made = [pair(evolution) for _ in range(3)]
    untouched = [untrained() for _ in range(2)]
    for model in untouched:
        for p in model.parameters():
            nn.init.uniform_(p, -0.3, 0.3)
    before = copy.deepcopy([model.state_dict() for model in untouched])
    for fold, (model, optimizer) in enumerate(made):
        for number in range(10):
            step(model, optimizer, number + 10 * fold)
        for p in untouched[1].parameters():
            nn.init.uniform_(p, -0.3, 0.3)
    assert_same(untouched[0].state_dict(), before[0])
    for number in range(10):  # side by side
        for model, optimizer in made:
            step(model, optimizer, number)


@pytest.mark.parametrize("evolution", [SET(interval=3), RigL(interval=3)])
@pytest.mark.parametrize("same_batches", [True, False])
def test_twins_trained_by_plain_optimizers_are_silent(evolution, same_batches):
    model, optimizer = pair(evolution)
    twin, _ = pair(evolution)
    hard_copy(twin, model)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.9)
    for number in range(15):
        step(model, optimizer, number)
        step(twin, twin_optimizer, number if same_batches else 100 + number)
        twin_optimizer.zero_grad()


@pytest.mark.parametrize("interval", [2, 5])
def test_twins_made_and_trained_in_the_middle_are_silent(interval):
    model, optimizer = pair(SET(interval=interval))
    twins = []
    for number in range(16):
        if number % 4 == 1:
            torch.manual_seed(1)
            twin, _ = sparsify(mlp(12, 16, 4, dtype=torch.float64), None, 0.35, seed=3)
            twins.append((twin, torch.optim.SGD(twin.parameters(), lr=0.2)))
        step(model, optimizer, number)
        for twin, own in twins:
            step(twin, own, number)
            own.zero_grad()


def test_snapshots_and_best_models_are_silent():
    model, optimizer = pair()
    best, kept = untrained("another"), []
    for number in range(20):
        step(model, optimizer, number)
        if number % 3 == 0:
            kept += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            best.load_state_dict(model.state_dict())
            best.double().eval()
            kept[-1](torch.zeros(1, 12, dtype=torch.float64))


def test_layers_of_one_shape_in_one_model_are_silent():
    torch.manual_seed(0)
    model = mlp(12, 12, 12, 12, 12)
    model, optimizer = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.3, evolution=SET(interval=3))
    for number in range(10):
        step(model, optimizer, number, torch.float32)


def test_models_with_constant_values_are_silent():
    models = []
    for _ in range(2):
        model, optimizer = pair(SET(interval=3))
        for p in model.parameters():
            nn.init.uniform_(p, 0.099, 0.101)
        models.append((model, optimizer))
    other = untrained("another")
    for p in other.parameters():
        nn.init.constant_(p, 0.1)
    for number in range(6):
        for model, optimizer in models:
            step(model, optimizer, number)


def test_a_target_built_of_the_layers_themselves():
    policy, optimizer = pair()
    layers = [
        SparseLinear.from_topology(p.shape, p.flat(), p.values.detach().clone(), nn.Parameter(p.bias.detach().clone()))
        for p in (policy[0], policy[2])
    ]
    target = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    with pytest.warns(UserWarning, match=ANY):
        run(policy, optimizer, target, data_copy, range(9))


def freed(layer, name):
    tensor = layer.values if name == "values" else getattr(layer, name)
    tensor.data = tensor.data.clone()  # of memory that can be freed
    tensor.untyped_storage().resize_(0)


def garbled(layer, name):
    getattr(layer, name).fill_(3)


BUFFERS = "crow", "col", "ccol", "csc_row", "csc_order"
BROKEN = [(kind, freed, name) for kind in ("stranger", "snapshot", "left behind") for name in ("values", *BUFFERS)]
BROKEN += [("stranger", garbled, name) for name in ("crow", "col")]  # of a copy that is an error: it may average them


@pytest.mark.parametrize(("relation", "breaks", "name"), BROKEN)
def test_another_models_broken_layer_does_not_stop_training(relation, breaks, name):
    policy, optimizer = pair(SET(interval=2))
    other = untrained("another") if relation == "stranger" else copy.deepcopy(policy)
    if relation == "left behind":
        step(policy, optimizer, 0)
        step(policy, optimizer, 1)  # evolves
    breaks(other[0], name)
    begun = optimizer.history[-1].step if optimizer.history else 0
    for number in range(begun, 6):
        step(policy, optimizer, number)
    assert [record.step for record in optimizer.history] == [2, 4, 6]
    alone, plain = pair(SET(interval=2))
    for number in range(6):
        step(alone, plain, number)
    assert_same(policy.state_dict(), alone.state_dict())
