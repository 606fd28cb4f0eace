"""The trackers of a run, none of which can end it: TensorBoard, Weights & Biases and MLflow."""

import contextlib
import functools
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from absl import logging

from env.base import UsageError
from etpo_jax.runs import directory, files
from etpo_jax.runs.final_scores import FinalScores
from etpo_jax.runs.mlflow_run import MlflowRun
from etpo_jax.runs.tensorboard import TensorBoard
from etpo_jax.runs.tracked_run import BestProgram, TrackedRun, Tracker, samples_of
from etpo_jax.runs.wandb_run import WandbRun

# Calls that wait for a service; one that falls so far behind is given up.
_MAX_WAITING = 1000
_CLOSE_S = 90.0
"""Seconds that a service may take for what is left at the end."""

Say = Callable[[str], None]


def check(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed; without tensorboardX a run goes on.

    Raises:
      UsageError: naming the tracker and the command that installs its package.
    """
    for name in names:
        if name != "tensorboard" and not _is_installed(name):
            raise UsageError(
                f"--trackers={name}: the package {name} is not installed; "
                f"pip install 'etpo_jax[{name}]' installs it"
            )


class Trackers:
    """All trackers of one process of a run. What one of them raises costs that tracker alone.

    TensorBoard's events are written at once; services are called from threads of their own, so
    that a slow network does not slow the run.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, say: Say) -> None:
        """Starts the trackers; each first gets the rows of the log that it does not have.

        Args:
          names: tensorboard, wandb or mlflow, each at most once; `check` has passed.
          run: the run, whose directory is cut back to its checkpoint.
          say: shows a line to the user, from any thread.
        """
        self._run = run
        self._last: Mapping[str, Any] | None = run.last_row()
        self._best: BestProgram | None = None
        self._guards: list[_Guard] = []
        for name in names:
            if name == "wandb":
                self._guards.append(_Background(name, run, lambda: WandbRun(run, say)))
            elif name == "mlflow":
                self._guards.append(_Background(name, run, lambda: MlflowRun(run, say)))
            elif _is_installed("tensorboardX"):
                self._guards.append(_Guard(name, run, lambda: TensorBoard(run)))
            else:
                say("tensorboard: no events are written, for tensorboardX is not installed")
        self._write_best(run.update)

    def write(self, row: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> None:
        """Shows an update everywhere.

        Args:
          row: its row of `metrics.jsonl`.
          episodes: its rows of `episodes.jsonl`.
        """
        self._last = row
        for guard in self._guards:
            guard.write(row, episodes)
        if self._run.shows_samples(row):
            self._write_best(row["update"])

    def write_scores(self) -> None:
        """Shows the final scores of the best program and of baselines, if there are any."""
        path = self._run.path / directory.SCORES
        if self._last is None or not path.exists():
            return
        numbers = FinalScores.from_json(files.read_json(path)).numbers()
        for guard in self._guards:
            guard.write_scores(numbers, self._last["update"])

    def close(self) -> None:
        """Shows the best program and ends; waits for services for a bounded time."""
        last = self._last
        if last is not None:
            self._write_best(last["update"])
        is_finished = last is not None and self._run.is_last(last)
        for guard in self._guards:
            guard.close(is_finished=is_finished)
        for guard in self._guards:
            guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_best(self, update: int) -> None:
        best = self._run.best() if self._guards else None
        if best is not None and best != self._best:
            self._best = best
            for guard in self._guards:
                guard.write_best(best, update)


class _Guard:
    """A tracker that is given up, with one warning, when it raises."""

    def __init__(self, name: str, run: TrackedRun, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._run = run
        self._tracker: Tracker | None = None
        self._is_given_up = False
        self._do(functools.partial(self._start, make))

    def write(self, row: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> None:
        self._do(functools.partial(self._write, row, episodes))

    def write_best(self, best: BestProgram, update: int) -> None:
        self._do(lambda: self._made.write_best(best, update))

    def write_scores(self, numbers: Mapping[str, float], update: int) -> None:
        self._do(lambda: self._made.write_scores(numbers, update))

    def close(self, *, is_finished: bool) -> None:
        self._do(lambda: self._made.close(is_finished=is_finished))

    def wait(self) -> None:
        """Waits until everything is shown, for a bounded time."""

    @property
    def _made(self) -> Tracker:
        assert self._tracker is not None  # nothing is called once the start has failed
        return self._tracker

    def _do(self, action: Callable[[], None]) -> None:
        if self._is_given_up:
            return
        try:
            action()
        except (Exception, SystemExit) as error:  # a library may raise anything
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        self._is_given_up = True
        line = " ".join(reason.split())[:400]
        logging.warning("--trackers=%s: the run goes on without it: %s", self._name, line)

    def _start(self, make: Callable[[], Tracker]) -> None:
        self._tracker = make()
        for row, episodes in self._run.history():
            self._write(row, episodes)

    def _write(self, row: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> None:
        # A row that is read from the log at the start may be among those of this process as well.
        if row["update"] >= self._made.next_update:
            samples = samples_of(episodes) if self._run.shows_samples(row) else []
            self._made.write(files.to_json(row), samples)
            self._made.next_update = row["update"] + 1


class _Background(_Guard):
    """A guarded tracker whose calls are made one after another in a thread of its own."""

    def __init__(self, name: str, run: TrackedRun, make: Callable[[], Tracker]) -> None:
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_MAX_WAITING)
        # A daemon, so that a service that never answers does not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        super().__init__(name, run, make)

    def wait(self) -> None:
        if not self._is_given_up:
            self._thread.join(_CLOSE_S)
            if self._thread.is_alive():
                self._give_up(f"it has not taken everything within {_CLOSE_S:.0f} s")

    def close(self, *, is_finished: bool) -> None:
        super().close(is_finished=is_finished)
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def _do(self, action: Callable[[], None]) -> None:
        if self._is_given_up:
            return
        try:
            self._waiting.put_nowait(action)
        except queue.Full:
            self._give_up(f"it is more than {_MAX_WAITING} calls behind")

    def _work(self) -> None:
        while (action := self._waiting.get()) is not None:
            super()._do(action)


def _is_installed(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # the module is being hidden, as tests do
        return False
    # A folder of that name, such as W&B's own, is found as a package without a file.
    return spec is not None and spec.origin is not None
