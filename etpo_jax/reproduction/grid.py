"""Grids of runs, each an ordinary training program in a run directory of its own.

A grid may be killed at any time and started again: finished cells are kept, and the others resume
from their checkpoints. The reason of a cell that fails is noted, and the other cells go on.
"""

import collections
import dataclasses
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from etpo_jax.runs import directory, files

_POLL_S = 0.1
_REASON_LENGTH = 500


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One run: an algorithm (name of its flagfile), a data set and a seed."""

    algorithm: str
    dataset: str
    seed: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.dataset}, seed {self.seed}"

    def folder(self, output: Path) -> Path:
        """Run directory of the cell within the grid's folder."""
        return output / "runs" / self.algorithm / folder_name(self.dataset) / str(self.seed)

    def log(self, output: Path) -> Path:
        """File with the output of the cell's program."""
        name = f"{self.algorithm}-{folder_name(self.dataset)}-{self.seed}.log"
        return output / "logs" / name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """End of a cell; `error` is one line, "" for a finished cell."""

    cell: Cell
    error: str


def folder_name(dataset: str) -> str:
    """Turns the name of a data set, which may be a path, into the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", dataset)


def has_steps(path: Path, num_env_steps: int) -> bool:
    """True for the run directory of a finished run with at least these environment steps."""
    file = path / directory.FINISHED
    return file.exists() and files.read_json(file)["env_step"] >= num_env_steps


def run(
    cells: Sequence[Cell],
    output: Path,
    command: Callable[[Cell, Path], Sequence[str]],
    *,
    is_finished: Callable[[Path], bool],
    jobs: int,
    is_stopped: Callable[[], bool],
    on_change: Callable[["Progress"], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Runs all cells that are not finished yet, `jobs` cells at a time.

    Args:
      cells: the cells, in the order in which they are started.
      output: folder of the grid.
      command: makes the training command for a cell and its run directory.
      is_finished: true for the run directory of a cell that needs no further program.
      jobs: number of programs at the same time.
      is_stopped: polled between programs; once true, all programs are told to save and stop.
      on_change: called with the progress at the start and after every cell.
      clock: seconds from any origin.

    Returns:
      The outcomes of the cells that ended; those of a stopped grid may be fewer than `cells`.
    """
    progress = Progress(cells, jobs, clock)
    waiting: collections.deque[Cell] = collections.deque()
    for cell in cells:
        if is_finished(cell.folder(output)):
            progress.end(Outcome(cell, ""), seconds=None)
        else:
            waiting.append(cell)
    running: dict[Cell, tuple[subprocess.Popen, float]] = {}
    is_told_to_stop = False
    on_change(progress)
    try:
        while waiting or running:
            if is_stopped() and not is_told_to_stop:
                is_told_to_stop = True
                waiting.clear()
                _tell_to_stop(process for process, _ in running.values())
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                running[cell] = (_start(cell, output, command), clock())
            for cell, code, started in _take_ended(running):
                if is_told_to_stop and code:
                    continue
                error = _error(cell, output, code, is_finished)
                progress.end(Outcome(cell, error), seconds=clock() - started)
                on_change(progress)
            time.sleep(_POLL_S)
    finally:
        _tell_to_stop(process for process, _ in running.values())
        for process, _ in running.values():
            process.wait()
    return progress.outcomes


class Progress:
    """Counts the finished cells of a grid and estimates the remaining time."""

    def __init__(self, cells: Sequence[Cell], jobs: int, clock: Callable[[], float]) -> None:
        self._cells = list(cells)
        self._jobs = jobs
        self._clock = clock
        self._start = clock()
        self._seconds: list[float] = []
        self.outcomes: list[Outcome] = []

    def end(self, outcome: Outcome, *, seconds: float | None) -> None:
        """Notes an outcome; `seconds` is None for a cell that an earlier call finished."""
        self.outcomes.append(outcome)
        if seconds is not None:
            self._seconds.append(seconds)

    @property
    def is_at_an_end(self) -> bool:
        """True before the first cell has run and after the last one has."""
        return not self._seconds or len(self.outcomes) == len(self._cells)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    def line(self) -> str:
        """State of the grid in one line."""
        total, done = len(self._cells), len(self.outcomes)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        elapsed = tqdm.format_interval(self._clock() - self._start)
        return f"{done} of {total} cells{failed}, {elapsed} so far, ETA {self._remaining()}"

    def table(self) -> str:
        """Markdown table of the finished cells of each algorithm (row) and data set (column)."""
        datasets = list(dict.fromkeys(cell.dataset for cell in self._cells))
        lines = [
            f"| {' | '.join(['algorithm', *datasets])} |",
            f"|---|{'---|' * len(datasets)}",
        ]
        for algorithm in dict.fromkeys(cell.algorithm for cell in self._cells):
            counts = [self._count(algorithm, dataset) for dataset in datasets]
            lines.append(f"| {' | '.join([algorithm, *counts])} |")
        lines += ["", self.line()]
        lines += [f"- failed: {failure.cell}: {failure.error}" for failure in self.failures]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Writes the table to a file."""
        files.replace(path, self.table())

    def _count(self, algorithm: str, dataset: str) -> str:
        def matching(cells: Iterable[Cell]) -> int:
            return sum(cell.algorithm == algorithm and cell.dataset == dataset for cell in cells)

        failed = matching(failure.cell for failure in self.failures)
        done = matching(outcome.cell for outcome in self.outcomes) - failed
        text = f"{done}/{matching(self._cells)}"
        return f"{text} ({failed} failed)" if failed else text

    def _remaining(self) -> str:
        left = len(self._cells) - len(self.outcomes)
        if not left:
            return tqdm.format_interval(0)
        if not self._seconds:
            return "?"
        return tqdm.format_interval(sum(self._seconds) / len(self._seconds) * left / self._jobs)


def _take_ended(
    running: dict[Cell, tuple[subprocess.Popen, float]],
) -> list[tuple[Cell, int, float]]:
    """Removes the programs that have ended; returns each cell, exit code and time of its start."""
    ended = []
    for cell, (process, started) in list(running.items()):
        if (code := process.poll()) is not None:
            del running[cell]
            ended.append((cell, code, started))
    return ended


def _start(
    cell: Cell, output: Path, command: Callable[[Cell, Path], Sequence[str]]
) -> subprocess.Popen:
    folder, log = cell.folder(output), cell.log(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        # In a session of its own, Ctrl-C does not reach it beside the signal of `_tell_to_stop`.
        return subprocess.Popen(
            command(cell, folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _tell_to_stop(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)


def _error(cell: Cell, output: Path, code: int, is_finished: Callable[[Path], bool]) -> str:
    """Returns why a cell is not finished, from the end of its log; "" for a finished cell."""
    if code == 0 and is_finished(cell.folder(output)):
        return ""
    text = cell.log(output).read_text(errors="replace").strip()
    last = text.splitlines()[-1][:_REASON_LENGTH] if text else "it printed nothing"
    reason = "did not finish" if code == 0 else f"exit code {code}"
    return f"{reason}, {last} (see {cell.log(output)})"
