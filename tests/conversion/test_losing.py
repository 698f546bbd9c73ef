"""Which layers lose, what to give as `skip`, and skip="losing"."""

import ast
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsify import GMP, SparseLinear, plan, sparsify, summary
from sparsify._src.conversion import losing, speed
from tests.support.models import mlp


def expect(monkeypatch, fast=60, **by_density):
    """Layers are expected to be faster than dense from so many inputs on, and at densities below `below`."""
    below = by_density.get("below", 2.0)

    def times_faster(shape, nnz, use=speed.USUAL):
        gains = shape[1] * (use.batch / 128) >= fast and nnz < below * shape[0] * shape[1]
        return 2.0 if gains else 0.5

    monkeypatch.setattr(speed, "speed_up", times_faster)
    monkeypatch.setattr(speed, "dense_milliseconds", lambda shape, use=None: 1.0)
    monkeypatch.setattr(speed, "milliseconds", lambda shape, nnz, use=speed.USUAL: 1 / times_faster(shape, nnz, use))


def network():
    """Of the inputs 100, 50, 100, 20: the second and the fourth are narrow."""
    return nn.Sequential(*map(nn.Linear, (100, 50, 100, 20), (50, 100, 20, 90)))


def sparse(model):
    return [name for name, module in model.named_modules() if isinstance(module, SparseLinear)]


def pasted(report):
    """The list that the table says to paste, as Python reads it."""
    found = re.search(r"skip=(\[.*\])", report.notes[0])
    return ast.literal_eval(found[1])


def test_the_list_to_paste_leaves_no_layer_that_loses(monkeypatch):
    expect(monkeypatch)
    model = network()
    report = plan(model, 0.2)
    assert [row.is_slower for row in report.layers] == [False, True, False, True]
    assert str(report).splitlines()[-2] == (
        "so that no layer is slower than dense: skip=['1', '3'], or skip=\"losing\""
    )
    assert pasted(report) == list(report.skip) == ["1", "3"]
    again = plan(model, 0.2, skip=pasted(report))
    assert [row.name for row in again.sparse] == ["0", "2"]
    assert not any(row.is_slower for row in again.layers)
    assert (again.skip, again.notes) == ((), ())


@pytest.mark.parametrize("skip", ["0", ["0"], (glob for glob in ["0"])])
def test_the_list_goes_on_from_what_is_skipped_already(monkeypatch, skip):
    expect(monkeypatch)
    report = plan(network(), 0.2, skip=skip)
    assert pasted(report) == ["0", "1", "3"]
    assert "losing" not in report.notes[0], "which would not leave out what was named"
    assert pasted(plan(network(), 0.2, skip="3")) == ["3", "1"]


def test_names_that_hold_the_signs_of_globs_name_one_layer():
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("a*", "ab", "b", "c\"'")})
    model["b"] = nn.Linear(2000, 2000)
    report = plan(model, {"b": 0.01, "a[*]": 0.5, "c*": 0.5})
    assert pasted(report) == ["a[*]", "c\"'"]
    assert [row.name for row in plan(model, {"*": 0.01}, skip=pasted(report)).sparse] == ["ab", "b"]


def test_the_density_is_shared_anew_until_no_layer_loses(monkeypatch):
    expect(monkeypatch, below=0.35)
    model = network()
    first = plan(model, 0.3)
    assert [row.is_slower for row in first.layers] == [False, True, True, True]
    assert pasted(first) == ["1", "2", "3"]
    expect(monkeypatch, fast=0, below=0.23)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(100, 100), nn.Linear(20, 100))
    report = plan(model, 0.1)  # densities 0.074, 0.222 and 0.665; without the last 0.083 and 0.25
    assert [row.is_slower for row in report.layers] == [False, False, True]
    assert pasted(report) == ["1", "2"]
    left = plan(model, 0.1, skip="losing")
    assert [(row.name, row.density) for row in left.sparse] == [("0", 0.1)]


def test_sparsify_and_plan_leave_the_same_layers_dense(monkeypatch):
    expect(monkeypatch)
    model = network()
    report = plan(model, 0.2, skip="losing")
    assert [row.name for row in report.sparse] == ["0", "2"]
    assert report.layers[1].reason == "it would be slower than dense (0.50 x), and skip is 'losing'"
    assert report.totals[0].density == pytest.approx(0.2, abs=1e-3)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    model, sgd = sparsify(model, sgd, 0.2, skip="losing")
    assert sparse(model) == ["0", "2"]
    assert [row.nnz for row in summary(model).layers] == [row.nnz for row in report.layers]


def test_a_layer_of_that_name_is_named_by_a_list(monkeypatch):
    expect(monkeypatch)
    model = nn.ModuleDict({"losing": nn.Linear(100, 100), "narrow": nn.Linear(20, 100)})
    assert [row.name for row in plan(model, 0.2, skip=["losing"]).sparse] == ["narrow"]
    assert [row.name for row in plan(model, 0.2, skip="losing").sparse] == ["losing"]


def test_where_all_lose_it_is_an_error_and_nothing_changes():
    model = mlp(16, 16, 16)
    message = r"skip must leave a layer .*, got \"losing\" where each .*: '0' 0\.\d+ x, '2' 0\.\d+ x\. Wider"
    for call in (plan, lambda *given, **options: sparsify(given[0], None, given[1], **options)):
        with pytest.raises(ValueError, match=message):
            call(model, 0.1, skip="losing")
    assert sparse(model) == []
    report = plan(model, 0.1)
    assert report.skip == ()
    assert report.notes == (
        "each of these sparse layers is expected to be slower than dense: wider layers or a lower density gain",
    )


def test_where_none_loses_it_changes_nothing(monkeypatch):
    expect(monkeypatch, fast=0)
    assert plan(network(), 0.2, skip="losing") == plan(network(), 0.2)
    assert plan(network(), 1.0, skip="losing") == plan(network(), 1.0)
    model, _ = sparsify(network(), None, 0.2)
    assert [row.nnz for row in plan(model, skip="losing").layers] == [row.nnz for row in summary(model).layers]


def test_a_layer_whose_share_was_1_may_become_sparse_when_others_are_left_dense(monkeypatch):
    monkeypatch.setattr(speed, "speed_up", lambda shape, nnz, use=None: 0.5 if shape[1] > 500 else 2.0)
    model = nn.Sequential(nn.Linear(784, 300), nn.Linear(10, 10))
    assert plan(model, 0.1).layers[1].reason == "its density is 1"
    assert [row.name for row in plan(model, 0.1, skip="losing").sparse] == ["1"]
    monkeypatch.setattr(speed, "speed_up", lambda shape, nnz, use=None: 0.5)
    with pytest.raises(ValueError, match=r"'0' 0\.50 x, '1' 0\.50 x"):
        plan(model, 0.1, skip="losing")


def test_what_is_sparse_already_is_not_named_and_where_it_is_pruned_further_may_be_all(monkeypatch):
    expect(monkeypatch, fast=10_000)
    model = mlp(40, 30, 20)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    model, sgd = sparsify(model, sgd, {"0": 0.5})
    report = plan(model, 0.1, optimizer=sgd, evolution=GMP(until=10), skip="losing")
    assert [row.name for row in report.sparse] == ["0"]
    assert report.layers[1].reason.startswith("it would be slower")
    assert "slower than dense" in str(report).splitlines()[1]
    assert report.notes == ()


def test_the_connections_of_a_pruned_model_are_judged_as_they_are():
    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 10))
    for layer in model:
        layer.weight.data *= torch.rand_like(layer.weight) < 0.02
    before = plan(model, start="nonzero")
    assert pasted(before) == ["1"]
    report = plan(model, start="nonzero", skip="losing")
    assert [(row.name, row.nnz) for row in report.sparse] == [("0", before.layers[0].nnz)]
    model, _ = sparsify(model, None, start="nonzero", skip="losing")
    assert sparse(model) == ["0"]


def test_a_plan_does_not_raise_where_leaving_out_what_loses_would(monkeypatch):
    expect(monkeypatch)
    model = network()
    evolution = GMP(until=10, start_density=0.6)
    report = plan(model, {"0": 0.05, "1": 0.1, "2": 0.8}, evolution=evolution, skip="3")
    assert report.skip == ("3", "1")
    few = {"1": 0.05, "2": 0.9}
    report = plan(model, few, evolution=evolution)
    assert report.notes[0].startswith("without the layers that lose sparsify would raise: start_density must be at")
    assert report.skip == ()
    with pytest.raises(ValueError, match="start_density must be at least"):
        sparsify(model, torch.optim.SGD(model.parameters(), 0.1), few, evolution=evolution, skip="losing")


def test_the_topology_of_another_model_is_judged_too(monkeypatch):
    expect(monkeypatch)
    ticket, _ = sparsify(network(), None, 0.2)
    report = plan(network(), start=ticket)
    assert pasted(report) == ["1", "3"]
    assert [row.name for row in plan(network(), start=ticket, skip="losing").sparse] == ["0", "2"]


def test_a_state_dict_says_itself_what_is_sparse():
    model, _ = sparsify(mlp(40, 30, 20), None, 0.1)
    with pytest.raises(ValueError, match="density and skip must not be given where start is a state dict"):
        plan(mlp(40, 30, 20), start=model.state_dict(), skip="losing")
    assert plan(mlp(40, 30, 20), start=model.state_dict()).notes == ()


def test_the_batch_decides_what_loses_in_a_plan_and_losing_is_judged_at_128(monkeypatch):
    expect(monkeypatch, fast=50)
    assert pasted(plan(network(), 0.2)) == ["3"]
    assert pasted(plan(network(), 0.2, batch=64)) == ["1", "3"]
    assert '"losing"' not in plan(network(), 0.2, batch=64).notes[0]
    with pytest.raises(ValueError, match=r"skip must name layers where batch is not 128 or .* batch=64, .* to paste"):
        plan(network(), 0.2, batch=64, skip="losing")
    with pytest.raises(
        ValueError, match=r"training is False, got \"losing\" and batch=128, training=False: .* to paste"
    ):
        plan(network(), 0.2, training=False, skip="losing")


def test_ranks_are_told_to_use_one_list(monkeypatch):
    expect(monkeypatch)
    monkeypatch.setattr(losing, "Ranks", lambda: SimpleNamespace(group="a group"))
    message = r"skip must name layers in distributed training, got \"losing\".* on this one skip=\['1', '3'\]\."
    with pytest.raises(ValueError, match=message):
        plan(network(), 0.2, skip="losing")
    with pytest.raises(ValueError, match=message):
        sparsify(network(), None, 0.2, skip="losing")


def test_on_other_devices_nothing_is_known(monkeypatch):
    expect(monkeypatch)
    monkeypatch.setattr(speed, "is_known", lambda device: False)
    report = plan(network(), 0.2)
    assert [row.speed_up for row in report.layers] == [None] * 4
    assert (report.speed_up, report.notes) == (None, ())
    with pytest.raises(ValueError, match=r"skip must name layers that are on cpu, got \"losing\" in layer '0'"):
        plan(network(), 0.2, skip="losing")


def test_a_cpu_and_what_will_be_on_one_is_known():
    assert [speed.is_known(torch.device(name)) for name in ("cpu", "meta", "cuda")] == [True, True, False]
