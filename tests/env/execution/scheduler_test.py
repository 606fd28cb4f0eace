"""The executor survives what happens to its processes, and leaves none of them behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from env.execution import code_executor
from env.execution.zygote import Zygote
from env.executor import CodeExecutor, ExecutorError
from tests.env.execution.background import run_in_background
from tests.env.executor_test import LOGISTIC, OPTIONS, TABLE

SLEEP = "import time; time.sleep(60)"


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[CodeExecutor, list[Zygote]]]:
    """An executor, and its zygotes so far, the one that lives last."""
    zygotes: list[Zygote] = []
    launch = code_executor.launch

    def remember(*arguments: object) -> Zygote:
        zygotes.append(launch(*arguments))
        return zygotes[-1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(code_executor, "launch", remember)
        # Without a wrapper: the process that is known is the zygote itself.
        with CodeExecutor(TABLE, **OPTIONS, isolation="seccomp") as executor:
            yield executor, zygotes


@pytest.fixture
def executor(shared) -> CodeExecutor:
    return shared[0]


@pytest.fixture
def zygotes(shared) -> list[Zygote]:
    """The zygotes that are started from now on, after the one that lives already."""
    executor, started = shared
    executor.run(["model = 1"])
    del started[:-1]
    return started


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, queue = [], [pid]
    while queue:
        queue += (new := children.get(queue.pop(), []))
        found += new
    return found


def _wait(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_zygote_killed_in_the_middle_costs_nothing(executor, zygotes):
    (expected,) = executor.run([LOGISTIC])
    future = run_in_background(executor, [LOGISTIC] * 20)
    time.sleep(0.2)
    os.kill(zygotes[0].pid, signal.SIGKILL)
    results = future.result(60)
    assert {result.split_scores for result in results} == {expected.split_scores}
    assert len(zygotes) == 2


def test_cell_killed_from_outside_is_tried_again_once(executor, zygotes):
    slow = "import time; time.sleep(1)\n    raise ValueError('here')"
    future = run_in_background(executor, [slow])
    _kill_the_working_cell(zygotes[0].pid)
    (result,) = future.result(30)
    assert result.error == "ValueError: here"

    future = run_in_background(executor, [SLEEP])
    _kill_the_working_cell(zygotes[0].pid)
    _kill_the_working_cell(zygotes[0].pid)
    (result,) = future.result(30)
    assert result.error == "MemoryError: the program was killed for using too much memory"
    assert len(zygotes) == 1


def _kill_the_working_cell(zygote: int) -> None:
    """Kills the cell that sleeps in its program; the others wait on their connections."""

    def sleeping() -> list[int]:
        found = []
        for pid in _descendants(zygote):
            try:
                is_asleep = "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()
            except OSError:
                continue
            if is_asleep:
                found.append(pid)
        return found

    _wait(sleeping)
    (pid,) = sleeping()
    os.kill(pid, signal.SIGKILL)
    _wait(lambda: not _is_alive(pid))


def test_zygote_that_hangs_is_replaced(executor, zygotes, monkeypatch):
    monkeypatch.setattr("env.execution.nursery._ANSWER_S", 1.0)
    os.kill(zygotes[0].pid, signal.SIGSTOP)
    assert executor.run([LOGISTIC] * 5)[4].error == ""
    assert len(zygotes) == 2


def test_a_zygote_that_cannot_start_ends_the_run_with_the_reason():
    options = {**OPTIONS, "libraries": ["no_such_library"]}
    with (
        CodeExecutor(TABLE, **options) as executor,
        pytest.raises(ExecutorError, match=r"does not start: .*No module named 'no_such_library'"),
    ):
        executor.run([LOGISTIC])


def test_descriptors_may_run_out_for_a_while(executor, zygotes):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        hoard = []
        while True:
            try:
                hoard.append(os.dup(0))
            except OSError:
                break
        future = run_in_background(executor, [LOGISTIC] * 5)
        time.sleep(0.5)
    finally:
        for fd in hoard:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [result.error for result in future.result(30)] == [""] * 5
    assert len(zygotes) == 1


def test_nothing_accumulates(executor, zygotes):
    bodies = ["raise ValueError", "import os; os._exit(0)", "model = 1", LOGISTIC] * 3
    executor.run(bodies)
    time.sleep(0.5)
    before = len(os.listdir("/proc/self/fd")), len(_descendants(zygotes[0].pid))
    for _ in range(3):
        executor.run(bodies)
    time.sleep(0.5)
    assert (len(os.listdir("/proc/self/fd")), len(_descendants(zygotes[0].pid))) == before


def test_two_executors_do_not_disturb_each_other(executor):
    with CodeExecutor(TABLE, **OPTIONS) as other:
        futures = [run_in_background(one, [LOGISTIC] * 5) for one in (executor, other)]
        first, second = [future.result(60) for future in futures]
        assert {r.split_scores for r in first} == {r.split_scores for r in second}
        processes = _descendants(other._scheduler._nurseries[0].zygote.pid)
    _wait(lambda: not any(_is_alive(pid) for pid in processes))
    assert executor.run([LOGISTIC])[0].error == ""


# Beginning of a program that executes others; it starts without scikit-learn, which takes a second.
_TRAINER = f"""
import signal, sys, time, types
import numpy as np
from env.executor import CodeExecutor
labels = np.arange(60) % 3
table = types.SimpleNamespace(features=np.eye(3)[labels], labels=labels)
options = {OPTIONS!r}
body = {LOGISTIC!r}
"""

_BUSY_TRAINER = (
    _TRAINER
    + """
if __name__ == "__main__":
    # A shell's background jobs, such as the tests may be, are started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with CodeExecutor(table, **options, isolation=sys.argv[1]) as executor:
        executor.run([body])
        print("ready", flush=True)
        executor.run(["import time; time.sleep(15)", "while True: pass"] * 3)
"""
)


@pytest.fixture
def trainer(request, tmp_path):
    """A process that executes programs in the tier of the test's parameter, and its descendants."""
    script = tmp_path / "trainer.py"
    script.write_text(_BUSY_TRAINER)
    process = subprocess.Popen(
        [sys.executable, str(script), request.param],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    if line != "ready\n":
        pytest.skip(process.communicate()[1].strip().splitlines()[-1])
    time.sleep(0.3)
    descendants = _descendants(process.pid)
    assert len(descendants) > 2
    yield process, descendants
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ("bwrap", signal.SIGKILL),
        ("landlock", signal.SIGKILL),
        ("seccomp", signal.SIGKILL),
        ("auto", signal.SIGINT),
    ],
    indirect=["trainer"],
)
def test_a_trainer_that_ends_takes_everything_with_it(trainer, number):
    process, descendants = trainer
    process.send_signal(number)
    process.wait(60)
    _wait(lambda: not any(_is_alive(pid) for pid in descendants), 5)
    errors = process.stderr.read()
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


_STOPPED_TRAINER = (
    _TRAINER
    + """
if __name__ == "__main__":
    options["timeout_s"] = 4.0
    with CodeExecutor(table, **options) as executor:
        executor.run([body])
        print("ready", flush=True)
        late = "import time; time.sleep(0.2)\\n    " + body
        print([result.error for result in executor.run([late])])
"""
)


def test_a_stopped_trainer_finds_its_programs_well(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(_STOPPED_TRAINER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "['']\n"
