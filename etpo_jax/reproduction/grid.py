"""Many runs, each an ordinary training program in a run directory of its own.

A grid may be killed at any time and started again: finished cells are kept, the others go on from
their checkpoints. A cell that fails is noted with its reason, and the others go on.
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


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One run: which algorithm (a flagfile's name) learns which data set from which seed."""

    algorithm: str
    dataset: str
    seed: int

    def __str__(self) -> str:
        return f"{self.algorithm} on {self.dataset}, seed {self.seed}"

    def folder(self, output: Path) -> Path:
        """Its run directory within the grid's folder."""
        return output / "runs" / self.algorithm / folder_name(self.dataset) / str(self.seed)

    def log(self, output: Path) -> Path:
        """What its program printed."""
        name = f"{self.algorithm}-{folder_name(self.dataset)}-{self.seed}.log"
        return output / "logs" / name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended; `error` is one line, "" for a finished cell."""

    cell: Cell
    error: str


def folder_name(dataset: str) -> str:
    """A data set's name, which may be a path, as the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", dataset)


def is_finished(path: Path, num_env_steps: int) -> bool:
    """Whether a run directory holds a run that has done these environment steps."""
    file = path / directory.FINISHED
    return file.exists() and files.read_json(file)["env_step"] >= num_env_steps


def run(
    cells: Sequence[Cell],
    output: Path,
    command: Callable[[Cell, Path], Sequence[str]],
    *,
    num_env_steps: int,
    jobs: int,
    is_stopped: Callable[[], bool],
    on_change: Callable[["Progress"], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Runs what is not finished yet, `jobs` cells at a time.

    Args:
      cells: in the order in which they are started.
      output: folder of the grid.
      command: the training program for a cell and its run directory.
      num_env_steps: when a cell counts as finished.
      jobs: programs at the same time.
      is_stopped: asked all the time; then the programs are told to save and stop.
      on_change: called with the progress at the start and after every cell.

    Returns:
      What became of the cells that ended; a stopped grid leaves some out.
    """
    progress = Progress(cells, jobs, clock)
    waiting: collections.deque[Cell] = collections.deque()
    for cell in cells:
        if is_finished(cell.folder(output), num_env_steps):
            progress.end(Outcome(cell, ""), seconds=None)
        else:
            waiting.append(cell)
    running: dict[Cell, tuple[subprocess.Popen, float]] = {}
    is_told = False
    on_change(progress)
    try:
        while waiting or running:
            if is_stopped() and not is_told:
                is_told = True
                waiting.clear()
                _tell(process for process, _ in running.values())
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                running[cell] = (_start(cell, output, command), clock())
            for cell, (process, started) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[cell]
                if is_told and code:
                    continue  # it stopped because it was told to
                error = _error(cell, output, code, num_env_steps)
                progress.end(Outcome(cell, error), seconds=clock() - started)
                on_change(progress)
            time.sleep(_POLL_S)
    finally:
        _tell(process for process, _ in running.values())
        for process, _ in running.values():
            process.wait()
    return progress.outcomes


class Progress:
    """Which cells of a grid are done, and how long the rest takes."""

    def __init__(self, cells: Sequence[Cell], jobs: int, clock: Callable[[], float]) -> None:
        self._cells = list(cells)
        self._jobs = jobs
        self._clock = clock
        self._start = clock()
        self._seconds: list[float] = []
        self.outcomes: list[Outcome] = []

    def end(self, outcome: Outcome, *, seconds: float | None) -> None:
        """Notes a cell; `seconds` is None for one that an earlier call of the grid finished."""
        self.outcomes.append(outcome)
        if seconds is not None:
            self._seconds.append(seconds)

    @property
    def is_at_an_end(self) -> bool:
        """Whether no cell has been run yet, or none is left to run."""
        return not self._seconds or len(self.outcomes) == len(self._cells)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    def line(self) -> str:
        """The state of the grid in one line."""
        total, done = len(self._cells), len(self.outcomes)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        elapsed = tqdm.format_interval(self._clock() - self._start)
        return f"{done} of {total} cells{failed}, {elapsed} so far, ETA {self._remaining()}"

    def table(self) -> str:
        """Markdown: cells done of each algorithm (rows) and data set (columns)."""
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
        """Makes `path` hold the table."""
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


def _start(
    cell: Cell, output: Path, command: Callable[[Cell, Path], Sequence[str]]
) -> subprocess.Popen:
    folder, log = cell.folder(output), cell.log(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        # A session of its own: Ctrl-C comes through `_tell` once, and not from the terminal too.
        return subprocess.Popen(
            command(cell, folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _tell(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)


def _error(cell: Cell, output: Path, code: int, num_env_steps: int) -> str:
    """Why a cell is not finished, from the end of its log; "" if it is."""
    if code == 0 and is_finished(cell.folder(output), num_env_steps):
        return ""
    text = cell.log(output).read_text(errors="replace").strip()
    last = text.splitlines()[-1] if text else "it printed nothing"
    reason = "did not finish" if code == 0 else f"exit code {code}"
    return f"{reason}, {last} (see {cell.log(output)})"
