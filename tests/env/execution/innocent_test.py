"""A program whose processes are stopped, frozen or starved is run again and is not to blame."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from env.execution import results, scheduler, tiers, vitals
from env.execution.vitals import child
from env.executor import CodeExecutor, Limits
from tests.env.execution.background import run_in_background
from tests.env.executor_test import LOGISTIC, TABLE, published_reward

AVAILABLE = [tier for tier in tiers.TIERS if not tiers.probe(tier)]
# The strongest tier and none, unless all are asked for: these tests wait more than they compute.
TESTED = AVAILABLE if "ETPO_ALL_TIERS" in os.environ else AVAILABLE[:1]
BACK_S = 3.0
# The same and the rest of a program, on a machine that others use too.
DONE_S = BACK_S + 5.0
# Seconds that a replacement of the libraries' process may take on a machine that others use too.
START_S = 30.0
SLOW = "import time; time.sleep(1.5)\n    " + LOGISTIC
BUSY = "t = __import__('time').process_time\n    while t() < 1.0: pass\n    " + LOGISTIC
OPTIONS = {"num_workers": 2, "memory_bytes": 2**30, "num_splits": 1}


def _zygote(executor: CodeExecutor) -> int:
    """Process id of the libraries' process, once it has started."""
    deadline = time.monotonic() + START_S
    while (pid := executor._scheduler._nurseries[0].zygote.inner_pid) is None:
        assert time.monotonic() < deadline, "it does not start"
        time.sleep(0.01)
    return pid


def _working(executor: CodeExecutor) -> list[int]:
    """Process ids of the cells that run a program, once there are some."""
    while True:
        for nursery in executor._scheduler._nurseries:
            jobs = list(nursery.working.values())
            found = [child(nursery.zygote.inner_pid, job.cell.inner_pid) for job in jobs]
            if pids := [pid for pid in found if pid is not None]:
                return pids
        time.sleep(0.01)


def _stop(pids: list[int], number: int = signal.SIGSTOP) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # a cell that was about to end
            os.kill(pid, number)


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    _stop(pids)
    yield
    _stop(pids, signal.SIGCONT)


def _executor(tier: str) -> CodeExecutor:
    """An executor whose wall limit is shorter than the time that is lost."""
    limits = Limits(timeout_s=3.0, cpu_s=2)
    return CodeExecutor(TABLE, **OPTIONS, limits=limits, isolation=tier)


@pytest.fixture(scope="module", params=[*TESTED, "unsafe"])
def executor(request) -> Iterator[CodeExecutor]:
    """An executor in every tier that is tested."""
    with _executor(request.param) as executor:
        yield executor


@pytest.fixture(scope="module")
def strongest() -> Iterator[CodeExecutor]:
    """An executor in the strongest tier."""
    with _executor("auto") as executor:
        yield executor


def _check(executor: CodeExecutor) -> None:
    """Checks that a program has its usual score."""
    (result,) = executor.run([LOGISTIC])
    assert (result.error, result.split_scores) == ("", published_scores())


@functools.cache
def published_scores() -> tuple[float, ...]:
    return (published_reward(LOGISTIC, TABLE, num_splits=1),)


def _whole(executor: CodeExecutor) -> list[int]:
    process = psutil.Process(_zygote(executor))
    return [process.pid, *(cell.pid for cell in process.children())]


WHAT: dict[str, Callable[[CodeExecutor], list[int]]] = {
    "cell": _working,
    "zygote": lambda executor: [_zygote(executor)],
    "worker": _whole,
}


@pytest.mark.parametrize("what", WHAT)
def test_what_is_stopped_for_good_is_replaced(executor, what):
    future = run_in_background(executor, [SLOW] * 2)
    _working(executor)
    time.sleep(0.3)
    _stop(WHAT[what](executor))
    (first, second) = future.result(START_S)
    assert (first.error, second.error) == ("", "")
    assert first.split_scores == second.split_scores == published_scores()
    _check(executor)


def test_twice_in_a_row(executor):
    for _ in range(2):
        future = run_in_background(executor, [SLOW, BUSY])
        _working(executor)
        with _stopped(_whole(executor)):
            time.sleep(3.5)
        assert [result.error for result in future.result(START_S)] == ["", ""]
        _check(executor)


def test_a_pause_of_everything_but_the_trainer_does_not_count(strongest, monkeypatch):
    # As long as nobody takes the processes for lost.
    monkeypatch.setattr("env.execution.nursery._STOPPED_S", 60.0)
    future = run_in_background(strongest, [SLOW] * 2)
    _working(strongest)
    zygote = _zygote(strongest)
    with _stopped(_whole(strongest)):
        time.sleep(4.0)
    start = time.monotonic()
    results = future.result(START_S)
    assert time.monotonic() - start < DONE_S
    assert [result.error for result in results] == ["", ""]
    assert _zygote(strongest) == zygote


FREEZERS = {
    "first version": (Path("/sys/fs/cgroup/freezer"), "freezer.state", "FROZEN", "THAWED"),
    "second version": (Path("/sys/fs/cgroup/unified"), "cgroup.freeze", "1", "0"),
    "second version alone": (Path("/sys/fs/cgroup"), "cgroup.freeze", "1", "0"),
}


@pytest.fixture(params=FREEZERS)
def freeze(request) -> Iterator[Callable[[list[int]], None]]:
    """Puts processes into a control group of their own and freezes it; it thaws after the test."""
    root, switch, on, off = FREEZERS[request.param]
    folder = root / f"etpo-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    if not (folder / switch).exists():
        folder.rmdir()
        pytest.skip("these control groups cannot freeze")

    def freeze(pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a cell that was about to end
                (folder / "cgroup.procs").write_text(str(pid))
        (folder / switch).write_text(on)

    yield freeze
    (folder / switch).write_text(off)
    deadline = time.monotonic() + 10
    while (folder / "cgroup.procs").read_text():
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folder.rmdir()


@pytest.mark.parametrize("what", ["cell", "worker"])
def test_what_is_frozen_is_replaced(strongest, freeze, what):
    future = run_in_background(strongest, [SLOW, BUSY])
    _working(strongest)
    freeze(WHAT[what](strongest))
    assert [result.error for result in future.result(START_S)] == ["", ""]
    _check(strongest)


def test_a_starved_program_is_not_slow():
    """One core and a crowd on it, which leave a program a twentieth of a processor."""
    core = min(os.sched_getaffinity(0))
    crowd = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass",
            ]
        )
        for _ in range(6)
    ]
    limits = Limits(timeout_s=1.5, cpu_s=2)
    body = "t = __import__('time').process_time\n    while t() < 1.2: pass\n    " + LOGISTIC
    try:
        with CodeExecutor(TABLE, **OPTIONS, limits=limits, isolation="seccomp") as executor:
            executor.run([LOGISTIC])
            for pid in _whole(executor):
                os.sched_setaffinity(pid, [core])
            start = time.monotonic()
            (busy,) = executor.run([body])
            elapsed_s = time.monotonic() - start
            (sleepy,) = executor.run(["import time; time.sleep(60)"])
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert busy.error == ""
    # The result's own time leaves out what the crowd took.
    assert elapsed_s > max(1.5, busy.wall_s)
    assert sleepy.error.startswith("TimeoutError: the program took longer")
    assert sleepy.wall_s < 1.5 + 1.5


# What programs might do in order to be taken for innocent.
PRETENDERS = {
    "sleeps": "import time; time.sleep(60)",
    "sleeps in short pieces": "import time\n    while True: time.sleep(0.001)",
    "waits for a thread that waits": (
        "import threading\n    threading.Thread(target=threading.Event().wait).start()\n"
        "    threading.Event().wait()"
    ),
    "spins": "while True: pass",
    "crowds itself out": (
        "import threading, time\n    def wake():\n        while True: time.sleep(0.0001)\n"
        "    for _ in range(16): threading.Thread(target=wake, daemon=True).start()\n"
        "    time.sleep(60)"
    ),
}


@pytest.mark.parametrize("name", PRETENDERS)
def test_who_chooses_to_wait_is_slow(strongest, name):
    start = time.monotonic()
    (result,) = strongest.run([PRETENDERS[name]])
    assert result.reward == -1
    assert result.error.startswith("TimeoutError")
    # Those that use a processor meet the limit of its time, later on a machine that is busy.
    assert time.monotonic() - start < (70.0 if "spins" in name else 20.0)


def test_who_stops_himself_is_tried_again_a_few_times_only(executor, monkeypatch):
    monkeypatch.setattr(results, "MOST_STOPS", 2)
    body = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\n    " + SLOW
    (result,) = executor.run([body])
    assert result.reward == -1
    if executor.isolation == "unsafe":
        assert (
            result.error
            == "TimeoutError: the process of the program was stopped each time that it was run"
        )
        assert result.wall_s < 3 * 2.5
    else:
        assert result.error.startswith("PermissionError")


def test_who_is_stopped_again_and_again_gets_no_more_time(strongest, monkeypatch):
    monkeypatch.setattr(results, "MOST_STOPS", 1)
    future = run_in_background(strongest, ["import time; time.sleep(60)"])
    for _ in range(2):
        _stop(_working(strongest))
        time.sleep(2.0)
    (result,) = future.result(20)
    assert result.error.startswith("TimeoutError: the process of the program was stopped")


def test_time_that_is_taken_off_the_clock_is_bounded(strongest, monkeypatch):
    monkeypatch.setattr(scheduler, "_MOST_KEPT", 0.2)
    monkeypatch.setattr("env.execution.nursery._STOPPED_S", 60.0)
    future = run_in_background(strongest, ["import time; time.sleep(60)"])
    (pid,) = _working(strongest)
    start = time.monotonic()
    with _stopped([pid]):
        (result,) = future.result(20)  # and not after 60 s
    assert result.error.startswith("TimeoutError: the program took longer")
    assert time.monotonic() - start > 3.0 + 0.3


def test_without_proc_a_stopped_worker_is_still_told_from_a_slow_program(
    strongest, monkeypatch, tmp_path
):
    monkeypatch.setattr(vitals, "_PROC", tmp_path)
    monkeypatch.setattr("env.execution.nursery._ANSWER_S", 10.0)
    future = run_in_background(strongest, [SLOW] * 2)
    time.sleep(0.5)
    with _stopped(_whole(strongest)):
        time.sleep(4.0)
    start = time.monotonic()
    assert [result.error for result in future.result(START_S)] == ["", ""]
    assert time.monotonic() - start < DONE_S
    (result,) = strongest.run(["import time; time.sleep(60)"])
    assert result.error.startswith("TimeoutError: the program took longer")
