"""Tiers are proved before they are used; without one, nothing runs."""

import functools
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from env.execution import tiers
from env.execution.zygote import ZygoteError
from env.executor import CodeExecutor
from env.isolation import IsolationError
from env.sandbox import canary, landlock
from env.sandbox.limits import Limits
from tests.env import ordinary_user
from tests.env.attacks import MEMORY, Attack
from tests.env.campaign import Noise
from tests.env.executor_test import OPTIONS, TABLE

LIMITS = Limits(memory_bytes=2**28)
AVAILABLE = [tier for tier in tiers.TIERS if not tiers.probe(tier)]


def _reason(monkeypatch, tier: str, **walls: bool) -> str:
    """Why a zygote of `tier` is refused when some of its walls are left away."""
    monkeypatch.setattr(tiers, "Confinement", functools.partial(_without, tiers.Confinement, walls))
    return tiers.probe(tier)


def _without(kind, walls, **settings):
    return kind(**{**settings, **walls})


def test_a_tier_stands_here():
    # Not so everywhere, but where this suite is to mean something.
    assert AVAILABLE


@pytest.mark.parametrize("tier", tiers.TIERS)
def test_named_tiers_are_used_or_refused(tier):
    if tier in AVAILABLE:
        assert tiers.choose(tier) == tier
    else:
        with pytest.raises(IsolationError, match=f"{tier}: "):
            tiers.choose(tier)


def test_auto_takes_the_strongest():
    assert tiers.choose("auto") == AVAILABLE[0]


def test_probe_is_quick():
    start = time.process_time()
    children = os.times().children_user
    assert tiers.probe(AVAILABLE[-1]) == ""
    assert time.process_time() - start + os.times().children_user - children < 0.5


def test_without_walls_the_canary_can_do_everything():
    zygote = tiers.launch("unsafe", LIMITS, libraries=None)
    zygote._must_hold = True
    try:
        with pytest.raises(ZygoteError) as error:
            tiers._wait_until_ready(zygote)
    finally:
        zygote.close()
    possible = str(error.value).removeprefix("a program could ").split(", ")
    assert possible == list(canary.FORBIDDEN)


@pytest.mark.skipif("landlock" not in AVAILABLE, reason="Landlock does not stand here")
def test_landlock_alone_is_not_enough(monkeypatch):
    reason = _reason(monkeypatch, "landlock", has_seccomp=False)
    assert "start a process" in reason
    assert "open a UDP socket" in reason
    # But it stands: what it is for is denied.
    assert "read a file" not in reason
    assert "write a file" not in reason


@pytest.mark.skipif("bwrap" not in AVAILABLE, reason="bubblewrap does not stand here")
def test_bubblewrap_alone_is_not_enough(monkeypatch):
    reason = _reason(monkeypatch, "bwrap", has_seccomp=False)
    assert "start a process" in reason
    # The root of this world is read-only.
    assert "write a file" in reason or "change the mode" in reason


def test_landlock_says_why_not(monkeypatch):
    monkeypatch.setattr(landlock, "_CREATE_RULESET", 100_000)
    with pytest.raises(landlock.LandlockError, match="this kernel has no Landlock"):
        landlock.version()


@pytest.fixture
def no_tier(monkeypatch):
    monkeypatch.setattr(tiers, "probe", lambda tier: f"no {tier} today")


def test_no_tier_no_execution(no_tier):
    message = (
        "cannot be isolated on this host (bwrap: no bwrap today; landlock: no landlock today; "
        "seccomp: no seccomp today). Install bubblewrap and allow user namespaces, or use Linux"
    )
    with pytest.raises(IsolationError, match=re.escape(message)) as error:
        CodeExecutor(TABLE, **OPTIONS)
    assert "\n" not in str(error.value)
    assert "--isolation=unsafe" in str(error.value)


def test_unsafe_by_name_has_no_walls(no_tier, tmp_path):
    # Labels can be remembered: so the test that they cannot be behind walls means something.
    rng = np.random.default_rng(0)
    noise = Noise(rng.normal(size=(400, 3)), rng.integers(2, size=400))
    body = Attack("memory", MEMORY).body({"FOLDERS": [str(tmp_path)]})
    with CodeExecutor(noise, **{**OPTIONS, "num_workers": 1}, isolation="unsafe") as executor:
        assert executor.isolation == "unsafe"
        first, second = (executor.run([body])[0].reward for _ in range(2))
    assert first > 0.8
    assert second > 0.99


def test_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tiers.probe("bwrap") == "bubblewrap is not installed"


def test_elsewhere_than_on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="seccomp: this is not Linux"):
        tiers.choose("auto")


def test_program_prints_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "env.isolation"], capture_output=True, text=True, check=True
    )
    for tier in tiers.TIERS:
        assert re.search(rf"^  {tier} +{'yes' if tier in AVAILABLE else 'no: '}", done.stdout, re.M)
    assert f"--isolation=auto uses {AVAILABLE[0]}." in done.stdout


# As the filter around an ordinary container: no namespaces, no Landlock, no mounts.
_CONTAINER = """
import os, sys
from env.sandbox import seccomp
forbidden = {"x86_64": [165, 166, 272, 308], "aarch64": [40, 39, 97, 268]}
numbers = [*forbidden[os.uname().machine], 444, 445, 446]
refuse = [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
seccomp.install(seccomp.assemble(
    [(0x20, 0, 0, 0), *refuse, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]))
os.execv(sys.argv[1], sys.argv[1:])
"""

# Hosts that are poorer than this one, as commands in front of the program. All need root.
HOSTS = {
    "ordinary_user": ordinary_user.command,
    "root_without_capabilities": lambda command: [
        *("setpriv", "--inh-caps=-all", "--bounding-set=-all"),
        *command,
    ],
    "container": lambda command: [sys.executable, "-c", _CONTAINER, *command],
    "read_only_tmp": lambda command: [
        *("unshare", "-m", "sh", "-c"),
        'mount -t tmpfs -o ro none /tmp; mount -t tmpfs -o ro none /dev/shm; exec "$@"',
        "sh",
        *command,
    ],
    "no_proc": lambda command: [
        *("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /proc; exec "$@"', "sh"),
        *command,
    ],
    "hidden_processes": lambda command: [
        *("unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c"),
        'mount -o remount,hidepid=2 /proc; exec "$@"',
        "sh",
        *command,
    ],
}


@pytest.mark.parametrize("host", HOSTS)
def test_poorer_hosts(host):
    if os.geteuid() != 0:
        pytest.skip("only root can make a host poorer")
    here = (os.path.realpath(os.getcwd()), sys.prefix)
    if host == "read_only_tmp" and any(path.startswith("/tmp/") for path in here):
        pytest.skip("the checkout or its Python is in /tmp, which the test hides")
    command = [sys.executable, "-m", "env.run_action", "--action_file=-", "--num_splits=1"]
    body = "from sklearn.naive_bayes import GaussianNB\n    model = GaussianNB()\n"
    body += "    model.fit(x_train, y_train)"
    done = subprocess.run(
        HOSTS[host](command), input=body, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["isolation"] in (["seccomp"] if host == "container" else tiers.TIERS)
    assert line["reward"] > 0.5
