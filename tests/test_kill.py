"""`kill -9` between two checkpoints, then the same command line again: as if nothing had happened, under every trainer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import assert_same
from .resumable_programs import STEPS

ROOT = Path(__file__).parent.parent
KILL_AT = 16


def run(program, folder, **environment):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.resumable_programs", program, str(folder)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def final(folder):
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize(("program", "saved"), [("plain", 12), ("accelerate", 12), ("lightning", 12), ("trainer", 15)])
def test_a_killed_run_started_again_ends_bit_for_bit_as_one_that_was_never_killed(program, saved, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    never_killed = run(program, straight)
    assert never_killed.returncode == 0, never_killed.stderr
    killed = run(program, broken, KILL_AT=str(KILL_AT))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (broken / "final.pt").exists()
    again = run(program, broken)
    assert again.returncode == 0, again.stderr

    expected, resumed = final(straight), final(broken)
    assert (expected["steps"], resumed["steps"]) == (STEPS, STEPS - saved)
    assert [record["step"] for record in resumed["states"][1]["sparsify"]["history"]] == list(range(2, 23, 2))
    assert_same(resumed["states"], expected["states"])
