"""What schedules and intervals of the user's answer, and how algorithms are written, is checked."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsify import GMP, SET, Evolution, GraNet, RigL
from sparsify.evolution import per_layer
from tests.support.views import path, refused  # noqa: F401

nan = torch.nan


NO_SHARES = {
    "number in [0, 1], got '0.3'": "0.3",
    "number in [0, 1], got None": None,
    "number in [0, 1], got True": True,
    "number in [0, 1], got tensor(0.3000)": torch.tensor(0.3),
    "number in [0, 1], got 0.3j": 0.3j,
    "in [0, 1], got nan": nan,
    "in [0, 1], got inf": torch.inf,
    "in [0, 1], got -2.0": -2.0,
    "in [0, 1], got 1.5": 1.5,
}


@pytest.mark.parametrize("rule", NO_SHARES)
def test_what_a_schedule_gives_must_be_a_share(rule):
    must = f"must be {'a ' if rule.startswith('number') else ''}{rule} at step "
    refused(f"drop_fraction {must}0", drop_fraction=lambda step: NO_SHARES[rule])
    algorithm = Evolution(
        interval=1, drop_fraction=0.3, scope=per_layer, start_density=0.5, surplus=lambda step: NO_SHARES[rule]
    )
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(f'surplus {must}7')}"):
        algorithm.connections(7, 20, 10)
    refused(f"surplus {must}0", start_density=0.5, surplus=lambda step: NO_SHARES[rule])


def test_shares_may_be_any_real_numbers():
    for share in 0.5, np.float32(0.5), Fraction(1, 2):
        algorithm = Evolution(
            interval=1,
            drop_fraction=lambda step, share=share: share,
            start_density=0.5,
            surplus=lambda step, share=share: share,
        )
        assert algorithm.fraction(1) == 0.5
        assert algorithm.connections(1, 20, 10) == 15


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        ("no", "'no'"),
        (0.05, "0.05"),
        (nan, "nan"),
        ([], "[]"),
        (torch.tensor([True, False]), "torch.bool (2,) on cpu"),
        (np.array([True, False]), "array([ True, False])"),
        (torch.tensor(True, device="meta"), "torch.bool () on meta"),
        (torch.tensor(0.5), "torch.float32 () on cpu"),
    ],
)
def test_an_interval_must_answer_true_or_false(answer, got):
    with pytest.raises(TypeError, match=re.escape(f"interval must answer True or False, got {got} at step 3.")):
        SET(interval=lambda step: answer).due(3)


@pytest.mark.parametrize("yes", [True, np.True_, 1, torch.tensor(True), torch.tensor([1])])
@pytest.mark.parametrize("no", [False, np.False_, 0, torch.tensor(False), None])
def test_plain_answers_of_an_interval(yes, no):
    assert [step for step in range(1, 9) if SET(interval=lambda step: yes if step in (2, 5) else no).due(step)] == [
        2,
        5,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Evolution(interval=5, drop="magnitude"),
            "drop must be a drop rule such as magnitude, .*, got 'magnitude'. Pass the function itself",
        ),
        (lambda: Evolution(interval=5, scope=None), "scope must be a scope such as per_sign, .*, got None"),
        (lambda: Evolution(interval=5, grow=0.5), "grow must be a growth rule such as uniformly, .*, got 0.5"),
        (
            lambda: Evolution(interval=5, start_density=0.5, surplus=0.3),
            "surplus must be a schedule such as .*, got 0.3",
        ),
        (lambda: RigL(interval=5, until="9"), "until must be a whole number of optimizer steps, got '9'"),
        (lambda: RigL(interval=5, until=nan), "until must be a whole number of optimizer steps, got nan"),
        (lambda: RigL(interval=5, until=True), "until must be a whole number of optimizer steps, got True"),
        (lambda: GMP(until="9"), "until must be a whole number of optimizer steps, got '9'"),
        (lambda: GMP(until=9, begin=nan), "begin must be a whole number of optimizer steps, got nan"),
        (lambda: GraNet(until=9, prune_until="5"), "prune_until must be a whole number of optimizer steps, got '5'"),
    ],
)
def test_rules_and_steps_are_checked_at_once(make, message):
    with pytest.raises(TypeError, match=message):
        make()
