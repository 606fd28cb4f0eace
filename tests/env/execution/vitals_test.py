"""What a process did is told apart from what was done to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from env.execution.vitals import Vitals, child

SLEEPS = "import time; time.sleep(60)"
SPINS = "while True: pass"


@pytest.fixture
def process(request) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", request.param])
    time.sleep(0.5)
    yield process
    process.kill()
    process.wait()


def _kept(vitals: Vitals, *, looks: int = 4) -> float:
    vitals.look(time.monotonic())
    total_s = 0.0
    for _ in range(looks):
        time.sleep(0.25)
        total_s += vitals.look(time.monotonic())
    return total_s


@pytest.mark.parametrize("process", [SLEEPS], indirect=True)
def test_sleep_is_a_choice(process):
    vitals = Vitals(process.pid, time.monotonic())
    assert _kept(vitals) < 0.1
    assert not vitals.is_blind
    assert vitals.stopped_s == 0.0


@pytest.mark.parametrize("process", [SLEEPS, SPINS], indirect=True)
def test_a_stop_is_not(process):
    vitals = Vitals(process.pid, time.monotonic())
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    assert _kept(vitals) == pytest.approx(1.0, abs=0.3)
    assert vitals.stopped_s == pytest.approx(1.0, abs=0.3)
    os.kill(process.pid, signal.SIGCONT)
    vitals.look(time.monotonic())
    if process.args[-1] == SPINS:
        time.sleep(0.5)
        vitals.look(time.monotonic())
    time.sleep(0.1)
    vitals.look(time.monotonic())
    assert vitals.stopped_s == 0.0


def test_a_process_that_is_gone_reports_nothing():
    for pid in (None, 2**22 + 1):
        vitals = Vitals(pid, 0.0)
        assert vitals.look(10.0) == 0.0
        assert vitals.is_blind
        assert vitals.stopped_s == 0.0


@pytest.mark.parametrize("process", [SLEEPS], indirect=True)
def test_a_child_is_found(process):
    assert child(os.getpid(), process.pid) == process.pid
    assert child(process.pid, process.pid) is None
    assert child(None, process.pid) is None
