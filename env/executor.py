"""Runs the bodies that the agent writes and scores them: the trusted side of Eq. 10.

Bodies are never compiled, imported or unpickled here: each split of each execution goes to a fresh
process behind the walls of `env.isolation`, and what comes back is an array of numbers or a text.
"""

import threading
from collections.abc import Sequence
from typing import Self

from env.execution.error_text import clean_error
from env.execution.metrics import Metric
from env.execution.results import FAILURE_REWARD, Execution, ExecutionResult
from env.execution.scheduler import ExecutorError, Scheduler
from env.execution.scoring import LabelledTable, Scorer
from env.isolation import choose, launch
from env.sandbox.limits import Limits
from env.tasks import prompts

__all__ = ["FAILURE_REWARD", "CodeExecutor", "ExecutionResult", "ExecutorError"]

_MAX_SOURCE_BYTES = 1 << 20
_QUEUE_PER_WORKER = 128


class CodeExecutor:
    """A pool of isolated processes that runs and scores bodies of `build_model`.

    Use it as a context manager. `run` may be called from many threads.

    Args:
      dataset: the table that programs are scored on.
      num_workers: programs that run at the same time.
      timeout_s: wall-clock seconds of one split.
      memory_bytes: memory of one process beyond what the libraries take.
      num_splits: splits of the reward (Eq. 10 uses 5).
      isolation: `auto`, or a tier by name; see `env.isolation`.
      cpu_s: processor seconds of one split; by default half of `timeout_s`.
      max_threads: threads of one process beside its first.
      max_output_bytes: what one process may print; nothing of it is kept.
      libraries: modules that programs may import beyond the standard library, numpy, scipy,
        scikit-learn and pandas.
      metric: what the reward averages over the splits; by default the ROC AUC.

    Raises:
      ValueError: naming a value out of range.
      IsolationError: when no wall of the kind asked for stands on this host.
      UsageError: when the table has no AUC on some split.
    """

    def __init__(
        self,
        dataset: LabelledTable,
        *,
        num_workers: int,
        timeout_s: float,
        memory_bytes: int,
        num_splits: int = 5,
        isolation: str = "auto",
        cpu_s: int | None = None,
        max_threads: int = 32,
        max_output_bytes: int = 1 << 24,
        libraries: Sequence[str] = (),
        metric: Metric | None = None,
    ):
        for name, value in (("num_workers", num_workers), ("num_splits", num_splits)):
            if value < 1:
                raise ValueError(f"{name} is {value} and must be at least 1")
        limits = Limits.of(
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            cpu_s=cpu_s,
            max_threads=max_threads,
            max_output_bytes=max_output_bytes,
        )
        self._num_splits = num_splits
        self._capacity = threading.Semaphore(_QUEUE_PER_WORKER * num_workers)
        scorer = Scorer(dataset, num_splits, metric)
        self._isolation = isolation = choose(isolation)
        self._scheduler = Scheduler(
            lambda: launch(isolation, limits, libraries), scorer, limits, num_workers
        )

    @property
    def isolation(self) -> str:
        """The tier that is in force."""
        return self._isolation

    def run(self, bodies: Sequence[str]) -> list[ExecutionResult]:
        """Runs and scores every body; results in the order of `bodies`.

        A body that fails in whatever way has an `error` and the reward -1. Any number of bodies may
        be given: they wait in a bounded queue, and this call waits for room in it.

        Raises:
          ExecutorError: when the executor is closed, or can start no process; never for a body.
        """
        executions: list[Execution] = []
        try:
            for body in bodies:
                self._capacity.acquire()
                execution = Execution(self._num_splits)
                execution.future.add_done_callback(lambda _: self._capacity.release())
                executions.append(execution)
                self._submit(execution, body)
            return [execution.future.result() for execution in executions]
        except BaseException:
            self._scheduler.cancel(executions)
            raise

    def _submit(self, execution: Execution, body: str) -> None:
        try:
            execution.source = prompts.program(body).encode()
            if len(execution.source) > _MAX_SOURCE_BYTES:
                raise ValueError(f"the program is longer than {_MAX_SOURCE_BYTES} bytes")
        except ValueError as error:  # also a UnicodeEncodeError, for half a surrogate pair
            text = clean_error(f"{type(error).__name__}: {error}")
            execution.future.set_result(ExecutionResult(FAILURE_REWARD, (), text, 0.0))
        else:
            self._scheduler.submit(execution)

    def close(self) -> None:
        """Ends all processes; a `run` that is still waiting raises."""
        self._scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
