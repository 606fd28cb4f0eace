"""Where the time of training goes, update by update: `python -m benchmarks.train_step`.

Three short runs of the demonstration, each in a process and a run directory of its own, with no
rewards remembered from before: with an empty compilation cache, with that cache filled, and once
more as users run it, without the clock, to see what the clock costs.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import flags

from benchmarks.timeline import COMPILE, PARTS, Cost, Row, breakdowns, compile_seconds
from env import command_line
from env.base import UsageError
from etpo_jax.runs import directory, files

_POLL_S = 0.02
_SLOWEST = 8

_UPDATES = flags.DEFINE_integer("updates", 15, "Updates of each run.", lower_bound=4)
_WARM_UP = flags.DEFINE_integer("warm_up", 5, "First updates that are left out.", lower_bound=1)
_FLAGFILE = flags.DEFINE_string("run_flagfile", "launch/tiny.flags", "What is trained.")
_NUM_ENVS = flags.DEFINE_integer("envs", 16, "Episodes side by side.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "File for the tables as well.")


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run left behind.

    Attributes:
      first_update_s: from the command to the first row of `metrics.jsonl`.
      update_s: wall seconds between rows, update by update from the second on.
      metrics: rows of `metrics.jsonl`.
      timeline: rows of `benchmarks.timeline`; none of a run without the clock.
    """

    first_update_s: float
    update_s: list[float]
    metrics: list[Row]
    timeline: list[Row]


def main() -> None:
    if _WARM_UP.value > _UPDATES.value - 3:
        raise UsageError(
            f"--warm_up={_WARM_UP.value}: must leave 3 of --updates={_UPDATES.value} to measure"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cold, warm = (_run(folder, run, with_clock=True) for run in ("cold", "warm"))
        plain = _run(folder, "plain", with_clock=False)
    text = "\n\n".join(
        (
            f"{_UPDATES.value} updates of {_NUM_ENVS.value} environment steps, {_FLAGFILE.value}, "
            f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}. Updates "
            f"are medians after the first {_WARM_UP.value}; medians of parts need not add up.",
            start_table({"empty": cold, "filled": warm}),
            compile_table(cold.timeline, warm.timeline),
            update_table(warm.timeline, _WARM_UP.value),
            _check(warm, plain),
        )
    )
    print(text)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text + "\n")


def _run(folder: pathlib.Path, name: str, *, with_clock: bool) -> Run:
    """Trains in a process of its own and watches its rows appear."""
    run_dir, timeline = folder / name, folder / f"{name}.jsonl"
    module = "benchmarks.timed_train" if with_clock else "etpo_jax.train"
    command = [
        *(sys.executable, "-m", module, f"--flagfile={_FLAGFILE.value}", f"--run_dir={run_dir}"),
        *(f"--compilation_cache_dir={folder / 'programs'}", f"--num_envs={_NUM_ENVS.value}"),
        *(f"--reward_cache={folder / name}-rewards", "--steps_per_update=1"),
        f"--num_env_steps={_UPDATES.value * _NUM_ENVS.value}",
    ]
    if with_clock:
        command.append(f"--timeline={timeline}")
    metrics, log = run_dir / directory.METRICS, folder / f"{name}.log"
    started, seen = time.monotonic(), []
    with (
        open(log, "w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while process.poll() is None:
                rows = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
                seen += [time.monotonic()] * (rows - len(seen))
                time.sleep(_POLL_S)
        finally:
            process.terminate()
    if process.returncode:
        raise UsageError(f"the run failed: {' '.join(log.read_text().split()[-60:])}")
    return Run(
        first_update_s=seen[0] - started,
        update_s=[after - before for before, after in itertools.pairwise(seen)],
        metrics=list(files.read_rows(metrics)),
        timeline=_read(timeline) if with_clock else [],
    )


def _read(path: pathlib.Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start_table(runs: dict[str, Run]) -> str:
    """How long the first update is waited for, by state of the compilation cache."""
    lines = [
        "| compilation cache | first update after s | compiled or loaded programs | in s |",
        "|---|---|---|---|",
    ]
    for name, run in runs.items():
        compiled = [row for row in run.timeline if row["kind"] == COMPILE]
        count = sum(row["step"] == "compile" for row in compiled)
        seconds = sum(compile_seconds(run.timeline).values())
        lines.append(f"| {name} | {run.first_update_s:.1f} | {count} | {seconds:.1f} |")
    return "\n".join(lines)


def compile_table(cold: Sequence[Row], warm: Sequence[Row]) -> str:
    """The programs that take longest to compile."""
    cold_s, warm_s = compile_seconds(cold), compile_seconds(warm)
    lines = [
        "| program | trace, lower and compile, s | with a filled cache, s |",
        "|---|---|---|",
    ]
    for name in sorted(cold_s, key=lambda name: -cold_s[name])[:_SLOWEST]:
        lines.append(f"| {name} | {cold_s[name]:.2f} | {warm_s.get(name, 0.0):.2f} |")
    others = sorted(cold_s, key=lambda name: -cold_s[name])[_SLOWEST:]
    if others:
        sums = [sum(seconds.get(name, 0.0) for name in others) for seconds in (cold_s, warm_s)]
        lines.append(f"| {len(others)} others | {sums[0]:.2f} | {sums[1]:.2f} |")
    return "\n".join(lines)


def update_table(timeline: Sequence[Row], warm_up: int) -> str:
    """Medians of the parts of an update."""
    updates = breakdowns(timeline)[warm_up:]
    whole = [sum(parts.values(), Cost()) for parts, _ in updates]
    programs = statistics.median(programs_cpu for _, programs_cpu in updates)
    whole_wall = statistics.median(cost.wall for cost in whole)
    lines = ["| part of an update | wall s | share | CPU s |", "|---|---|---|---|"]
    for part, title in PARTS.items():
        wall = statistics.median(parts[part].wall for parts, _ in updates)
        cpu = statistics.median(parts[part].cpu for parts, _ in updates)
        lines.append(f"| {title} | {wall:.3f} | {wall / whole_wall:.0%} | {cpu:.3f} |")
    whole_cpu = statistics.median(cost.cpu for cost in whole)
    lines.append(f"| whole update | {whole_wall:.3f} | 100% | {whole_cpu:.3f} |")
    lines.append(f"| executed programs, in processes of their own | | | {programs:.3f} |")
    return "\n".join(lines)


def _check(timed: Run, plain: Run) -> str:
    """The same updates without the clock."""
    timed_s, plain_s = (
        statistics.median(run.update_s[_WARM_UP.value - 1 :]) for run in (timed, plain)
    )
    rows = plain.metrics[_WARM_UP.value :]
    phases = ", ".join(
        f"{name} {statistics.median(row[name] for row in rows):.3f}"
        for name in ("generate_s", "execute_s", "update_s")
    )
    return (
        f"Without the clock an update takes {plain_s:.3f} s (with it {timed_s:.3f} s) and the "
        f"first is done after {plain.first_update_s:.1f} s; its `metrics.jsonl` says {phases}."
    )


if __name__ == "__main__":
    command_line.run(main)
