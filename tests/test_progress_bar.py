"""The bar on the terminal while our own work takes long."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsify import plan, sparsify
from sparsify._src import progress_bar
from sparsify._src.conversion import measuring, replacement
from tests.support.comparing import assert_same, snapshot


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stderr_is(stream, monkeypatch):
    monkeypatch.setattr(progress_bar, "sys", SimpleNamespace(stderr=stream))  # pytest puts its own in the real one
    return stream


@pytest.fixture
def terminal(monkeypatch):
    return stderr_is(Terminal(), monkeypatch)


def work(**options):
    with progress_bar.shown("making", 30, " layers", **options) as advance:
        for _ in range(3):
            advance(10)


def test_short_work_shows_nothing(terminal):
    work()
    assert terminal.getvalue() == ""


def test_long_work_shows_how_far_it_is(terminal, monkeypatch):
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)
    work()
    assert "making" in terminal.getvalue()
    assert "0/30" in terminal.getvalue()


def test_work_that_is_known_to_be_long_shows_it_from_the_beginning(terminal):
    with progress_bar.shown("making", 30, at_once=True):
        assert "0/30" in terminal.getvalue()


@pytest.mark.parametrize("why", ["no terminal", "no stderr", "no tqdm", "another rank"])
def test_elsewhere_the_work_is_done_in_silence(why, terminal, monkeypatch):
    if why == "no terminal":
        terminal = stderr_is(io.StringIO(), monkeypatch)
    elif why == "no stderr":
        stderr_is(None, monkeypatch)  # as under pythonw
    elif why == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    else:
        monkeypatch.setattr(progress_bar, "is_first", lambda: False)
    work(at_once=True)
    assert terminal.getvalue() == ""


def test_sparsify_shows_how_many_connections_are_made(terminal, monkeypatch):
    monkeypatch.setattr(replacement, "MANY", 1)
    sparsify(nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 60)), None, {"*": 0.5})
    assert "making sparse layers" in terminal.getvalue()
    assert "0.00/2.50k" in terminal.getvalue()


def test_sparsify_interrupted_while_it_makes_layers_leaves_all_as_it_was(terminal, monkeypatch):
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 60))
    adam = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 40)).sum().backward()
    adam.step()
    before, make, made = snapshot(model, adam), replacement.sparse_layer, []

    def interrupted(*arguments):
        if made:
            raise KeyboardInterrupt
        made.append(make(*arguments))
        return made[0]

    monkeypatch.setattr(replacement, "sparse_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sparsify(model, adam, 0.3)
    assert made
    assert_same(snapshot(model, adam), before)


def test_measuring_shows_how_many_sizes_and_layers_it_has_done(terminal, monkeypatch):
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)
    monkeypatch.setattr(measuring, "_steadily", lambda timer, variants, _: {name: [1.0] for name in variants})
    plan(nn.Linear(100, 200), 0.1, measure=True)
    assert "measuring this machine" in terminal.getvalue()
    assert "measuring layers" in terminal.getvalue()
