"""`kill -9` between two checkpoints, then the same command again: as if nothing had happened, under every trainer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.comparing import assert_same
from tests.support.resumable_programs import STEPS

ROOT = Path(__file__).parent.parent
KILL_AT = 16


def start(program, folder, **environment):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.support.resumable_programs", program, str(folder)]
    environment |= {"OMP_NUM_THREADS": "1"}  # two of these run side by side
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipes)


def assert_ends(process, status):
    _, errors = process.communicate()
    assert process.returncode == status, errors


def final(folder):
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.mark.parametrize(("program", "saved"), [("plain", 12), ("accelerate", 12), ("lightning", 12), ("trainer", 15)])
def test_a_killed_run_started_again_ends_bit_for_bit_as_one_that_was_never_killed(program, saved, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    with start(program, straight) as never_killed, start(program, broken, KILL_AT=str(KILL_AT)) as killed:
        assert_ends(killed, -signal.SIGKILL)
        assert_ends(never_killed, 0)
    assert not (broken / "final.pt").exists()
    with start(program, broken) as again:
        assert_ends(again, 0)

    expected, resumed = final(straight), final(broken)
    assert (expected["steps"], resumed["steps"]) == (STEPS, STEPS - saved)
    assert [record["step"] for record in resumed["states"][1]["sparsify"]["history"]] == list(range(2, 23, 2))
    assert_same(resumed["states"], expected["states"])
