"""Two real processes, started by torchrun; what each of them found is looked at here (see distributed_worker.py)."""

import copy
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

from sparsify import SET, RigL, SparseLinear, Static, sparsify
from sparsify._src.distributed import Ranks
from sparsify._src.training.agreement import compare, tell
from tests.support.comparing import assert_same
from tests.support.distributed_worker import ALGORITHMS, WRAPPINGS, batch, half_images, halves, prepare, train
from tests.support.models import mlp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it scripts its functions with torch.jit
    from torch.distributed.optim import ZeroRedundancyOptimizer

ROOT = Path(__file__).parent.parent


def launch(what, folder, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    # A restart reads addresses of the processes before it where torchrun shares its store (PyTorch issue 135712).
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.support.distributed_worker", what, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch("checks", tmp_path_factory.mktemp("checks"))


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def topologies(outcome):
    return {key: index for key, index in outcome["model"].items() if key.endswith(("crow", "col"))}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_other_seeds_and_data_ranks_stay_equal_bit_for_bit(ranks, algorithm, wrapping):
    first, second = (found["seeds_and_data_differ"][algorithm, wrapping] for found in ranks)
    assert_same(first, second)  # parameters, topologies, optimizer state, history
    history = first["optimizer"]["sparsify"]["history"]
    assert len(history) == 20
    assert all(sum(layer["grown"] for layer in record["layers"].values()) > 0 for record in history)
    begin = {"model": first["begin"]}
    assert any(not torch.equal(index, topologies(first)[key]) for key, index in topologies(begin).items())


@pytest.mark.parametrize("algorithm", ["SET", "RigL", "RigL among"])
def test_two_ranks_with_half_a_batch_train_as_one_with_all_of_it(ranks, algorithm):
    parts = [found["half_batches"][algorithm] for found in ranks]
    whole = halves(0, 1, algorithm)
    for part in parts:
        assert_same(topologies(part), topologies(whole))
        assert len(part["optimizer"]["sparsify"]["history"]) == 10
        for key, values in whole["model"].items():
            assert torch.allclose(part["model"][key], values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["SET", "RigL", "RigL among"])
def test_convolutions_train_on_two_ranks_as_on_one(ranks, algorithm):
    parts = [found["convolutions"][algorithm] for found in ranks]
    whole = half_images(0, 1, algorithm)
    for part in parts:
        assert_same(topologies(part), topologies(whole))
        assert len(part["optimizer"]["sparsify"]["history"]) == 4
        for key, values in whole["model"].items():
            assert torch.allclose(part["model"][key], values, rtol=0, atol=1e-9)


def test_a_convolution_that_only_one_rank_goes_through_evolves_alike(ranks):
    first, second = (found["convolutions"]["branches"] for found in ranks)
    assert_same(first, second)
    assert all(record["layers"]["sometimes"]["grown"] > 0 for record in first["optimizer"]["sparsify"]["history"])


def test_rules_that_cannot_be_pickled_are_the_same_on_every_rank(ranks):
    first, second = (found["users_rules"] for found in ranks)
    assert_same(first, second)
    assert first["optimizer"]["sparsify"]["evolutions"] == 4


def test_the_group_may_be_initialised_after_sparsify(ranks):
    assert_same(*(found["initialised_late"] for found in ranks))
    assert ranks[0]["initialised_late"]["optimizer"]["sparsify"]["evolutions"] == 4


def test_with_other_weights_all_ranks_begin_with_the_largest_of_rank_0(ranks):
    first, second = (found["weights_differ"] for found in ranks)
    assert_same(first, second)
    assert torch.equal(first["begin"], first["largest of rank 0"])


def test_a_layer_that_one_rank_did_not_use_grows_by_the_others_gradient(ranks):
    first, second = (found["passes_differ"] for found in ranks)
    assert_same(first, second)
    history = first["optimizer"]["sparsify"]["history"]
    assert len(history) == 5
    assert all(record["layers"]["sometimes"]["grown"] > 0 for record in history)


def test_without_a_backward_pass_on_any_rank_all_raise(ranks):
    for found in ranks:
        error, unchanged = found["no_passes"]
        assert "growth by gradient needs a backward pass" in error
        assert unchanged


def test_a_layer_without_a_gradient_on_one_rank_stays_on_all(ranks):
    first, second = (found["gradient_on_one_rank_only"] for found in ranks)
    assert_same(topologies(first), topologies(second))
    layers = first["optimizer"]["sparsify"]["history"][0]["layers"]
    assert {name for name, layer in layers.items() if layer["evolved"]} == {"2", "4"}


def test_a_group_of_the_users_own_serves_and_copies_keep_what_can_be_kept(ranks):
    assert_same(*(found["subgroup"] for found in ranks))
    assert ranks[0]["subgroup"]["kept"] == (True, True)


def test_a_rank_alone_trains_without_the_others(ranks):
    assert [found["alone"] for found in ranks] == [0, 3]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("GMP", "evolution must keep each layer's number of connections in distributed training, got GMP"),
        ("evolution", r"evolution must be the same on every rank, .*: SET\(until=11\) and SET\(until=10\)\. Give"),
        (
            "coin",
            r"evolution must be .*: SET\(interval=coin\(0.5, seed=1\)\) and SET\(interval=coin\(0.5\)\)\. Give",
        ),
        ("function", r"evolution must be .*: SET\(interval=<lambda>\) and SET\(.*\)\. Give"),
        ("topology", "topology must be the same on every rank, got another on rank 1 than on rank 0 in layer '0'"),
        ("sparse layers", "sparse layers must be the same on every rank"),
        ("optimizer state", "optimizer state must be the same on every rank.* Give sparsify.. the same seed="),
        ("skip", r"skip must name layers in distributed training, .* on every rank: on this one skip=\['0'\]"),
    ],
)
def test_what_differs_before_the_first_step_is_an_error_on_every_rank(ranks, what, message):
    for found in ranks:
        error, unchanged = found["refusals"][what]
        assert re.search(message, error)
        assert unchanged


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "topology",
            "topology must be the same on every rank, got another on rank 1 than on rank 0 in layer '0'. After",
        ),
        ("values", "values must be the same on every rank, got another on rank 1 than on rank 0 in layer '2'. After"),
        ("step", "step must be the same on every rank, got another on rank 1 than on rank 0: 2 and 1. Load"),
        ("new topology", "new topology must be the same on every rank, "),
        ("count", "evolution must keep each layer's number of connections in distributed training, got Evolution"),
    ],
)
def test_divergence_is_an_error_on_every_rank_and_changes_no_topology(ranks, what, message):
    for found in ranks:
        error, unchanged = found["divergence"][what]
        assert error.startswith(f"RuntimeError: {message}")
        assert unchanged


@pytest.mark.parametrize("what", ["topology", "values", "step"])
def test_after_divergence_loading_one_checkpoint_puts_ranks_right(ranks, what):
    first, second = (found["divergence"][what, "resumed"] for found in ranks)
    assert_same(first, second)
    assert first["optimizer"]["sparsify"]["evolutions"] == 2


def test_ranks_that_reset_alike_go_on_and_others_are_told(ranks):
    first, second = (found["reset"]["one seed"] for found in ranks)
    assert_same(first, second)
    assert first["optimizer"]["sparsify"]["evolutions"] == 3
    for found in ranks:
        assert found["reset"]["two seeds"].startswith("RuntimeError: topology must be the same on every rank")


def test_sharding_is_refused_before_and_after(ranks):
    for found in ranks:
        assert "model must not be sharded, got FSDP" in found["sharded"]["before"]
        if torch.__version__ < (2, 7):
            pytest.skip("FSDP2 of this torch does not run on a CPU")
        assert (
            "values must be whole on every rank, got a DTensor in layer '0': FSDP leaves" in found["sharded"]["after"]
        )


@pytest.mark.parametrize("kind", ["sparse", "compiled"])
def test_a_step_sends_gradients_of_the_connections_alone(ranks, kind):
    sparse, dense = ranks[0]["traffic"][kind], ranks[0]["traffic"]["dense"]
    assert sparse["gradients"] == 4 * (20_000 + 3 * 1000)  # connections, bias, batch norm
    assert dense["gradients"] == 4 * (1_000_000 + 3 * 1000)


@pytest.mark.parametrize("kind", ["sparse", "compiled"])
def test_a_step_sends_no_indices(ranks, kind):
    sparse = ranks[0]["traffic"][kind]
    assert [name.removeprefix("_orig_mod.1.") for name in sparse["buffers"]] == [
        name.replace("1.", "" if kind == "compiled" else "1.")
        for name in ("1.num_batches_tracked", "1.running_mean", "1.running_var")
    ]
    if not sparse["wire"]:
        pytest.skip("this system does not count the bytes of its loopback interface")
    assert sparse["wire"] < 2 * sparse["gradients"] * 1.5  # indices would be another 2.7 times the gradients


def test_other_buffers_are_sent_as_ever(ranks):
    assert_same(*(found["traffic"]["sparse"]["mean"] for found in ranks))


def test_a_training_whose_rank_is_killed_ends_as_one_that_ran_through(ranks, tmp_path):
    restarted = launch("elastic", tmp_path, "--max-restarts", "1")
    for found, uninterrupted in zip(restarted, (found["elastic"] for found in ranks), strict=True):
        assert (found.pop("restarts"), uninterrupted.pop("restarts")) == ("1", "0")
        assert_same(found, uninterrupted)


def test_a_group_of_one_is_as_no_group(group_of_one):
    outcomes = []
    for group in group_of_one, None:
        model, optimizer = prepare(0, RigL(interval=2))
        assert optimizer.process_group is None
        optimizer.process_group = group
        assert optimizer.process_group is None
        replica = DistributedDataParallel(model) if group else model
        train(replica, optimizer, [batch(step) for step in range(8)])
        outcomes.append((model.state_dict(), optimizer.state_dict()))
    assert_same(*outcomes)


def test_indices_are_sent_by_no_wrapper_of_a_larger_model(group_of_one):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, _ = prepare(0, RigL())
            self.same = self.network

        def forward(self, inputs):
            return self.same(inputs)

    for replica in DistributedDataParallel(Task()), DistributedDataParallel(SparseLinear(12, 4, 0.5).double()):
        assert replica.modules_buffers
        for _ in range(2):
            replica(batch(0)[0])
        assert not replica.modules_buffers


def test_a_layer_that_became_sparse_after_its_wrapping_is_an_error(group_of_one):
    model = nn.Sequential(mlp(12, 4))
    replica = DistributedDataParallel(model)
    sparsify(model[0], None, 0.5)  # as in Lightning's configure_optimizers
    warned = pytest.warns(UserWarning, match="Something still holds the dense weights of '0'")
    with (
        warned,
        pytest.raises(RuntimeError, match=r"wrapped in DistributedDataParallel after sparsify\(\), got layer '0.0'"),
    ):
        replica(torch.randn(2, 12))
    with torch.no_grad():
        DistributedDataParallel(model)(torch.randn(2, 12))


def test_an_optimizer_that_holds_a_part_of_the_state_is_refused(group_of_one):
    model = mlp(8, 4)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), Adam)
    with pytest.raises(TypeError, match="got ZeroRedundancyOptimizer: it holds the state of some layers only"):
        sparsify(model, optimizer, 0.5)


def given_group(optimizer):
    """The group that ranks are looked up in: `process_group` is None in one process, whatever it is."""
    return optimizer._self_evolver.ranks._given


def test_copies_keep_that_they_are_alone():
    _, optimizer = prepare(0, RigL())
    for copied in copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)):
        assert given_group(copied) == "world"
    optimizer.process_group = None
    for copied in copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)):
        assert given_group(copied) is None


def test_ranks_that_train_alone_go_on_alone():
    model, optimizer = prepare(0, Static())
    assert given_group(optimizer) == "world"
    optimizer.process_group = None
    model, optimizer = sparsify(model, optimizer, evolution=SET(interval=1))
    assert given_group(optimizer) is None


def test_a_group_that_this_process_is_not_in_is_refused():
    _, optimizer = prepare(0, RigL())
    with pytest.raises(TypeError, match="process_group must be a group that this process is in, or None, got -100"):
        optimizer.process_group = dist.GroupMember.NON_GROUP_MEMBER


def test_values_that_were_replaced_after_sparsify_are_an_error_before_the_first_step():
    model, optimizer = prepare(0, RigL(), optimizer=lambda p: SGD(p, 0.1))
    model[0].values = nn.Parameter(model[0].values.detach().clone())
    before = model[2].values.detach().clone()
    with pytest.raises(ValueError, match=r"values must stay the parameter that sparsify\(\) made, .* layer '0'.* FSDP"):
        train(model, optimizer, [batch(0)])
    assert torch.equal(model[2].values, before)


def test_ranks_are_named_where_they_differ():
    told = [{"topology": {"a": "x", "b": value}} for value in ("y", "z", "y", "z")]
    with pytest.raises(RuntimeError, match="got another on ranks 1, 3 than on rank 0 in layer 'b'"):
        compare(told)
    compare([{"own seed": rank, "step": 3} for rank in range(3)])  # seeds need not be the same
    assert tell(Ranks(None), {"step": 1}, torch.device("cpu")) == [{"step": 1}]
