"""Several changes that happen all or none."""

import threading

import pytest
import torch
from torch import nn

from sparsify import SET, sparsify, trim
from sparsify._src.swap import Swap, settle


class Owner:
    swap = None

    def __init__(self):
        self.held = {}


def writing(owner, key, fail=()):
    """A change; it raises at the calls whose numbers are in `fail`."""
    calls = []

    def change():
        calls.append(key)
        if len(calls) in fail:
            raise KeyboardInterrupt
        owner.held[key] = "new"

    return change


def test_changes_are_carried_out_in_their_order_and_forgotten():
    owner = Owner()
    Swap([writing(owner, "a"), writing(owner, "b")], [owner]).commit()
    assert list(owner.held) == ["a", "b"]
    assert owner.swap is None


def test_what_interrupts_one_change_finds_all_carried_out():
    owner = Owner()
    swap = Swap([writing(owner, "a"), writing(owner, "b", fail=[1]), writing(owner, "c")], [owner])
    with pytest.raises(KeyboardInterrupt):
        swap.commit()
    assert set(owner.held) == {"a", "b", "c"}
    assert owner.swap is None


def test_what_was_interrupted_twice_is_finished_by_whoever_reads_next():
    one, other = Owner(), Owner()
    swap = Swap([writing(one, "a"), writing(other, "b", fail=[1, 2])], [one, other])
    with pytest.raises(KeyboardInterrupt):
        swap.commit()
    assert swap.under_way
    assert other.held == {}
    settle(one)
    assert other.held == {"b": "new"}
    assert not swap.under_way
    assert (one.swap, other.swap) == (None, None)


def test_what_comes_before_the_first_change_leaves_all_as_it_was():
    class Reluctant(Owner):
        def __setattr__(self, name, value):
            if name == "swap" and value is not None:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    one, other = Owner(), Reluctant()
    swap = Swap([writing(one, "a")], [one, other])
    with pytest.raises(KeyboardInterrupt):
        swap.commit()
    assert one.held == {}
    assert one.swap is None
    settle(one)
    assert one.held == {}


def test_another_thread_waits_until_all_is_done():
    owner, begun, may_go_on = Owner(), threading.Event(), threading.Event()

    def slow():
        begun.set()
        may_go_on.wait()
        owner.held["slow"] = True

    thread = threading.Thread(target=Swap([slow, writing(owner, "a")], [owner]).commit)
    thread.start()
    begun.wait()
    threading.Timer(0.05, may_go_on.set).start()
    settle(owner)
    assert owner.held == {"slow": True, "a": "new"}
    thread.join()


@pytest.mark.parametrize("work", ["step", "evolve", "trim", "load"])
def test_an_interruption_of_no_grad_itself_does_not_leave_gradients_off(work, monkeypatch):
    model = nn.Sequential(nn.Linear(20, 20))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = sparsify(model, sgd, 0.5, evolution=SET(interval=1))
    other = model.state_dict()
    model(torch.randn(4, 20)).sum().backward()
    works = {
        "step": optimizer.step,
        "evolve": optimizer.evolve,
        "trim": lambda: trim(model, 0.1, optimizer),
        "load": lambda: model.load_state_dict(other),
    }

    def interrupted(self):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.no_grad, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        works[work]()
    assert torch.is_grad_enabled()
