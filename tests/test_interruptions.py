"""An exception or Ctrl-C leaves the state before or the state after, wherever it comes: see `interruptions`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

QUICK = {
    "one line in sixty, and accidents": "SET/sgd/step/small --lines 60 --accidents 1 --uses 1",
    "every so often": "RigL/adam-fused/step/attention GraNet/sgd/evolve/attention GMP/adam/load_other_count/attention "
    "SET/sgd-fused/load_same_count/attention RigL/sgd/load_optimizer/attention across/adam/*trim*/attention "
    "--lines 4800 --operators 480 --allocations 240 --uses 1",
    "in earnest": "SET/sgd/evolve/large GMP/sgd/step/large --signals 8 --limits 10 --storm 6 --uses 1",
}
THOROUGH = {
    "every line once": "SET/sgd/step/small --lines 1000000 --new --uses 2",
    **{
        f"every line of {scenario}": f"{scenario}/small --lines 1 --operators 1 --allocations 1"
        for scenario in (
            "SET/sgd/step",
            "GMP/adam-fused/trim*",
            "RigL/adam/load_same_count",
            "GraNet/sgd/load_optimizer",
        )
    },
    **{
        f"every place once, part {part}": f"*/small --lines 50 --operators 10 --allocations 5 --new --part {part}/8"
        for part in range(8)
    },
    "attention": "*/attention --lines 400 --operators 40 --allocations 20 --signals 5 --uses 4",
    "in earnest": "*/large --signals 100 --limits 60 --storm 100 --uses 4",
    "accidents": "*/step/small */step/attention --accidents 1 --uses 1",
}


def interrupt(arguments):
    command = [sys.executable, "-m", "tests.support.interruptions", *arguments.split()]
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert not done.stderr
    return done


def counts(table, kind):
    """Tried, before, stepped, after, refused, torch's, BROKEN."""
    return [int(number) for number in re.search(rf"^{kind} +([\d ]+)$", table, re.MULTILINE)[1].split()]


@pytest.mark.parametrize("how", QUICK)
def test_an_interruption_leaves_the_state_before_or_the_state_after(how):
    done = interrupt(QUICK[how])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", THOROUGH)
def test_an_interruption_anywhere_leaves_the_state_before_or_the_state_after(how):
    done = interrupt(THOROUGH[how])
    assert done.returncode == 0, done.stdout


def test_what_is_not_whole_is_found():
    done = interrupt("SET/sgd/load_by_halves/small --lines 18 --uses 1")
    tried, before, _, after, *_, broken = counts(done.stdout, "lines")
    assert done.returncode == 1
    assert before
    assert after
    assert tried / 3 < broken < tried
