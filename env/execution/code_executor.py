"""The executor of one machine: the trusted side of Eq. 10.

Bodies are never compiled, imported or unpickled here: each split of each execution goes to a fresh
process behind the walls of `env.execution.tiers`, and what comes back is an array of numbers or an
error text.
"""

import dataclasses
import threading
from collections.abc import Sequence
from typing import Self

from env.execution.error_text import clean_error
from env.execution.metrics import Metric
from env.execution.program import ProgramTemplate, template_of
from env.execution.results import FAILURE_REWARD, Execution, ExecutionResult
from env.execution.scheduler import Scheduler
from env.execution.scoring import LabelledTable, Scorer
from env.execution.tiers import choose, launch
from env.sandbox.limits import Limits
from env.tables.splits import NUM_SPLITS

_MAX_SOURCE_BYTES = 1 << 20
_QUEUE_PER_WORKER = 128


class CodeExecutor:
    """A pool of isolated processes that runs and scores bodies, by default of `build_model`.

    Use it as a context manager. `run` may be called from many threads.

    Args:
      dataset: the table that programs are scored on.
      num_workers: number of programs that run at the same time.
      timeout_s: replaces the limit of that name in `limits`.
      memory_bytes: replaces the limit of that name in `limits`.
      num_splits: number of splits that the reward averages (Eq. 10 uses 5).
      isolation: `auto`, or a tier by name; see `env.isolation`.
      limits: resource limits of each process.
      libraries: modules that programs may import beyond the standard library, numpy, scipy,
        scikit-learn and pandas.
      metric: score that the reward averages over the splits; by default the ROC AUC, or r2 where
        the target is a number.
      template: how a body becomes a program; by default that of the paper, or `FRAME_MODEL` where
        the table has a frame.
      holdout: whether programs are trained on all rows once, and scored on the rows of
        `dataset.holdout`. The result then has the single score and its interval.

    Raises:
      ValueError: naming a value out of range.
      IsolationError: when no wall of the kind asked for stands on this host.
      UsageError: when the table has no score on some split, or no holdout rows that are asked for.
    """

    def __init__(
        self,
        dataset: LabelledTable,
        *,
        num_workers: int,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
        num_splits: int = NUM_SPLITS,
        isolation: str = "auto",
        limits: Limits | None = None,
        libraries: Sequence[str] = (),
        metric: Metric | None = None,
        template: ProgramTemplate | None = None,
        holdout: bool = False,
    ):
        for name, value in (("num_workers", num_workers), ("num_splits", num_splits)):
            if value < 1:
                raise ValueError(f"{name} is {value} and must be at least 1")
        limits = limits or Limits()
        if timeout_s is not None:
            limits = dataclasses.replace(limits, timeout_s=timeout_s)
        if memory_bytes is not None:
            limits = dataclasses.replace(limits, memory_bytes=memory_bytes)
        self._template = template = template or template_of(dataset)
        self._capacity = threading.Semaphore(_QUEUE_PER_WORKER * num_workers)
        self._has_intervals = holdout
        self._scorer = scorer = Scorer(
            dataset, num_splits, metric, template.function, holdout=holdout
        )
        self._isolation = isolation = choose(isolation)
        self._scheduler = Scheduler(
            lambda: launch(isolation, limits, libraries), scorer, limits, num_workers
        )

    @property
    def isolation(self) -> str:
        """Name of the isolation tier that is in force."""
        return self._isolation

    def run(self, bodies: Sequence[str]) -> list[ExecutionResult]:
        """Runs and scores every body; returns results in the order of `bodies`.

        A body that fails in any way has an `error` and the reward -1. Any number of bodies may be
        given: they wait in a bounded queue, and this call waits for room in it.

        Raises:
          ExecutorError: when the executor is closed, or can start no process; never for a body.
        """
        executions: list[Execution] = []
        try:
            for body in bodies:
                self._capacity.acquire()
                execution = Execution(len(self._scorer.splits))
                execution.future.add_done_callback(lambda _: self._capacity.release())
                executions.append(execution)
                self._submit(execution, body)
            return [self._result(execution) for execution in executions]
        except BaseException:
            self._scheduler.cancel(executions)
            raise

    def _submit(self, execution: Execution, body: str) -> None:
        try:
            execution.source = self._template.source(body).encode()
            if len(execution.source) > _MAX_SOURCE_BYTES:
                raise ValueError(f"the program is longer than {_MAX_SOURCE_BYTES} bytes")
        except ValueError as error:  # also a UnicodeEncodeError, for half a surrogate pair
            text = clean_error(f"{type(error).__name__}: {error}")
            execution.future.set_result(ExecutionResult(FAILURE_REWARD, (), text, 0.0))
        else:
            self._scheduler.submit(execution)

    def _result(self, execution: Execution) -> ExecutionResult:
        result = execution.future.result()
        if result.error or not self._has_intervals:
            return result
        # Takes a while, and so is not done in the thread that watches the processes.
        interval = self._scorer.interval(0, execution.predictions)
        return dataclasses.replace(result, interval=interval)

    def close(self) -> None:
        """Ends all processes; a `run` that is still waiting raises."""
        self._scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
