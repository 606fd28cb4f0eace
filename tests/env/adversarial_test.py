"""Hostile programs in every tier that this host offers, as root and as an ordinary user.

What is not stopped, and not tested: kernel bugs; programs that look at the validation features
after the fit; a few bits about labels through the choice of a message or a score.
"""

import functools
import json
import os
import re
import subprocess
import sys

import pytest

from env import isolation
from env.tasks import prompts
from tests.env import ordinary_user
from tests.env.attacks import ATTACKS
from tests.env.campaign import LIMITS, SECRET, SLOW_LIMITS

_OPTIONS = {"num_workers": 8, "memory_bytes": 512 * 2**20, "num_splits": 1}
_USERS = ("this_user", "ordinary_user")
_CONFIGURATIONS = [(tier, user) for tier in isolation.TIERS for user in _USERS]


@functools.cache
def _campaign(tier: str, user: str) -> dict:
    """The report of all attacks in one tier; skips where the tier does not stand."""
    command = [sys.executable, "-m", "tests.env.campaign"]
    if user == "ordinary_user":
        command = ordinary_user.command(command)
    options = {**_OPTIONS, "isolation": tier}
    done = subprocess.run(
        command, input=json.dumps(options), capture_output=True, text=True, timeout=300, check=False
    )
    if "cannot be isolated on this host" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=_CONFIGURATIONS, ids="-".join)
def campaign(request) -> dict:
    tier, user = request.param
    if user == "ordinary_user" and os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    return _campaign(tier, user)


def test_tier_is_in_force(campaign, request):
    assert campaign["isolation"] == request.node.callspec.params["campaign"][0]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(campaign, attack):
    outcome = campaign["outcomes"][attack.name]
    assert "BREACH" not in outcome["error"]
    assert re.search(attack.error, outcome["error"]), outcome["error"]
    assert (outcome["reward"] == -1) == bool(outcome["error"])
    limits = SLOW_LIMITS if attack.is_slow else LIMITS
    assert outcome["wall_s"] < limits.timeout_s + 1
    # What runs beside it and after it is not disturbed.
    assert outcome["benign"] == campaign["benign"]


def test_error_texts_fit_into_a_prompt(campaign):
    for outcome in campaign["outcomes"].values():
        error = outcome["error"]
        assert len(error) <= prompts.MAX_ERROR_CHARS
        assert error.isprintable()
        assert re.match(r"\w+(: |$)", error) or not error
        assert not re.search("<FILL_ME>|\"{3}|'{3}|/etc/|0x[0-9a-f]{6}", error), error


def test_host_is_untouched(campaign):
    assert campaign["files"] == ["secret"]
    assert campaign["secret"] == SECRET
    assert campaign["num_visits"] == 0
    assert not campaign["has_processes_left"]


def test_labels_cannot_be_remembered(campaign):
    for reward in campaign["from_memory"]:
        assert abs(reward - 0.5) < 0.1


def test_data_frames_carry_no_labels(campaign):
    for outcome in campaign["from_frames"]:
        assert outcome["error"] == ""
        assert abs(outcome["reward"] - 0.5) < 0.1
