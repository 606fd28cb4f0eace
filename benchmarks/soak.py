"""Many executions of hostile and benign programs, after which nothing may have grown.

    python -m benchmarks.soak --num_executions=20000

Prints a line of figures at intervals and compares the last with an early one. The exit code is 1 if
memory, descriptors, processes or files have grown, or if the score of a benign program has changed.
"""

import contextlib
import dataclasses
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from absl import flags

from env import command_line
from env.datasets import load_dataset
from env.executor import CodeExecutor
from env.isolation import CHOICES
from env.sandbox import seccomp
from env.sandbox.confinement import DYNAMIC_USERS
from tests.env.attacks import ATTACKS, BENIGN_BODY

_flags = flags.FlagValues()
_NUM_EXECUTIONS = flags.DEFINE_integer(
    "num_executions", 20_000, "Number of programs.", lower_bound=200, flag_values=_flags
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    os.cpu_count() or 1,
    "Programs that run at the same time.",
    lower_bound=1,
    flag_values=_flags,
)
_ISOLATION = flags.DEFINE_enum(
    "isolation", "auto", CHOICES[:-1], "Isolation tier of the programs.", flag_values=_flags
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the order of programs.", flag_values=_flags)

_MAX_REPORTS = 20
_EXECUTIONS_PER_REPORT = 50  # at least
_BENIGN_SHARE = 0.5
# The allocator of the scoring process keeps some of the memory of the busiest moment.
_MAX_GROWTH_BYTES = 16 << 20
_LISTENER = 9  # a port without a listener, which no program should reach


@dataclasses.dataclass(frozen=True)
class Figures:
    """Quantities that must not grow.

    Attributes:
      own_bytes: resident memory of this process.
      zygote_bytes: resident memory of its largest descendant.
      descriptors: open descriptors of this process.
      processes: number of its descendants.
      files: files that programs left in the folders where everybody may write.
    """

    own_bytes: int
    zygote_bytes: int
    descriptors: int
    processes: int
    files: int

    def __str__(self) -> str:
        return (
            f"own {self.own_bytes / 1e6:.1f} MB, zygote {self.zygote_bytes / 1e6:.1f} MB, "
            f"{self.descriptors} descriptors, {self.processes} processes, {self.files} files"
        )


def main() -> int:
    """Runs the programs and returns the exit code."""
    rng = random.Random(_SEED.value)
    dataset = load_dataset("balance_scale")
    hostile = _hostile_bodies()
    num_reports = min(_MAX_REPORTS, _NUM_EXECUTIONS.value // _EXECUTIONS_PER_REPORT)
    wrong = 0
    history = []
    with CodeExecutor(
        dataset,
        num_workers=_NUM_WORKERS.value,
        timeout_s=10.0,
        memory_bytes=2**28,
        num_splits=2,
        isolation=_ISOLATION.value,
    ) as executor:
        (expected,) = executor.run([BENIGN_BODY])
        print(f"isolation {executor.isolation}, a benign program scores {expected.reward:.4f}")
        start = time.monotonic()
        for report in range(num_reports):
            bodies = [
                BENIGN_BODY if rng.random() < _BENIGN_SHARE else rng.choice(hostile)
                for _ in range(_NUM_EXECUTIONS.value // num_reports)
            ]
            for body, result in zip(bodies, executor.run(bodies), strict=True):
                wrong += body is BENIGN_BODY and result.split_scores != expected.split_scores
            time.sleep(1.0)  # for processes that have just ended
            history.append(_measure())
            rate = (report + 1) * len(bodies) / (time.monotonic() - start)
            print(f"{(report + 1) * len(bodies):7d}  {rate:5.1f}/s  {history[-1]}", flush=True)
    problems = [f"{wrong} benign programs had another score than at first"] if wrong else []
    problems += grown(history[num_reports // 4], history[-1])
    for problem in problems:
        print(f"GROWN: {problem}")
    print("nothing has grown" if not problems else "")
    return 1 if problems else 0


def _hostile_bodies() -> list[str]:
    machine = os.uname().machine
    allowed = seccomp.numbers(seccomp.cell_rules(0), machine)
    values = {
        "CANARY": "/tmp/etpo-canary",
        "FOLDERS": ["/tmp", "/dev/shm"],
        "PID": os.getpid(),
        "ROWS": 63,
        "ALLOWED": sorted(allowed.values()),
        "CLONE": allowed["clone"],
        "TCP": _LISTENER,
        "UDP": _LISTENER,
        "UNIX": "/tmp/etpo-listener",
        "ABSTRACT": "\0etpo-listener",
    }
    return [attack.body(values) for attack in ATTACKS if not attack.is_slow]


def grown(early: Any, late: Any) -> list[str]:
    """Figures of a dataclass that have grown; those in bytes may grow by a little."""
    problems = []
    for field in dataclasses.fields(early):
        before, after = getattr(early, field.name), getattr(late, field.name)
        allowed = _MAX_GROWTH_BYTES if field.name.endswith("_bytes") else 0
        if after > before + allowed:
            problems.append(f"{field.name} from {before} to {after}")
    return problems


def _measure() -> Figures:
    own = psutil.Process()
    below = own.children(recursive=True)
    sizes = [0]
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_info().rss)
    return Figures(
        own_bytes=own.memory_info().rss,
        zygote_bytes=max(sizes),
        descriptors=own.num_fds(),
        processes=len(below),
        files=sum(_is_from_a_program(path) for path in _writable_by_all()),
    )


def _writable_by_all() -> Iterator[Path]:
    for folder in {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"}:
        if os.path.isdir(folder):
            yield from Path(folder).iterdir()


def _is_from_a_program(path: Path) -> bool:
    try:
        is_by_a_cell = path.lstat().st_uid in DYNAMIC_USERS
    except OSError:  # another process has removed it
        return False
    return is_by_a_cell or path.name.startswith("etpo-")


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
