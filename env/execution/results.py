"""Results of executions, and how the outcomes of the splits make up one."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_MOST_LOSSES = 2
FAILURE_REWARD = -1.0
"""Reward of a program that fails (Eq. 10)."""

MOST_STOPS = 8
"""Times that a split is run again because its process was stopped from outside."""


@dataclasses.dataclass(frozen=True)
class ExecutionResult:
    """The outcome of one body.

    Attributes:
      reward: mean score over the splits (Eq. 10), or `FAILURE_REWARD` if any split failed.
      split_scores: scores of the splits before the first that failed; all of them on success.
      error: `Type: message` of the first split that failed, fit for a prompt; "" on success.
      wall_s: seconds from the start of the first process to the result, whenever that was, without
        those in which its processes were kept from running.
      cached: whether the result was remembered and not computed this time.
      interval: 95 % interval of the reward over the scored rows, of an executor that scores the
        holdout and a body that succeeded; else None.
    """

    reward: float
    split_scores: tuple[float, ...]
    error: str
    wall_s: float
    cached: bool = False
    interval: tuple[float, float] | None = None


class Executor(Protocol):
    """Runs and scores bodies; the class `env.executor.CodeExecutor` describes the methods."""

    @property
    def isolation(self) -> str: ...
    def run(self, bodies: Sequence[str]) -> Sequence[ExecutionResult]: ...
    def close(self) -> None: ...


class Execution:
    """One body on its way to a result: which of its splits have run, and how they ended.

    Splits may run at the same time and end in any order; the outcome is that of running them one
    after the other until one fails.

    Attributes:
      source: the program, UTF-8.
      future: receives the result.
      predictions: bytes of the predictions for the first split, once that has a score.

    Args:
      num_splits: number of splits that make the reward.
    """

    def __init__(self, num_splits: int):
        self.source = b""
        self.num_splits = num_splits
        self.future: concurrent.futures.Future[ExecutionResult] = concurrent.futures.Future()
        self.predictions = b""
        self._scores: dict[int, float] = {}
        self._errors: dict[int, str] = {}
        self._losses: collections.Counter[int] = collections.Counter()
        self._stops: collections.Counter[int] = collections.Counter()
        self._kept_s = [0.0] * num_splits
        self._started_at: float | None = None

    def start(self, now: float) -> None:
        """Notes that one of the splits starts at the time `now`."""
        if self._started_at is None:
            self._started_at = now

    def score(self, split: int, score: float, predictions: bytes = b"") -> None:
        """Notes the score of a split that succeeded, and what was predicted."""
        self._scores[split] = score
        if split == 0:
            self.predictions = predictions

    def fail(self, split: int, error: str) -> None:
        """Notes the failure of a split, after which later splits do not matter any more."""
        self._errors[split] = error

    def lose(self, split: int) -> bool:
        """Notes that the process of a split vanished; returns whether to try again (once)."""
        self._losses[split] += 1
        return self._losses[split] < _MOST_LOSSES

    def stop(self, split: int) -> bool:
        """Notes that somebody stopped the process of a split; returns whether to try again."""
        self._stops[split] += 1
        return self._stops[split] <= MOST_STOPS

    def keep(self, split: int, kept_s: float) -> None:
        """Notes that the process of a split was kept from running for some seconds."""
        self._kept_s[split] += kept_s

    def is_wanted(self, split: int) -> bool:
        """Returns whether the outcome of a split can still matter."""
        return not self.future.done() and split < self._end()

    def is_complete(self) -> bool:
        """Returns whether the result is known."""
        return all(split in self._scores for split in range(self._end()))

    def result(self, now: float) -> ExecutionResult:
        """Returns the result of a complete execution."""
        scores = tuple(self._scores[split] for split in range(self._end()))
        # The first split runs before the others, which run at the same time.
        kept_s = self._kept_s[0] + max(self._kept_s[1:], default=0.0)
        wall_s = 0.0 if self._started_at is None else max(0.0, now - self._started_at - kept_s)
        if self._errors:
            return ExecutionResult(FAILURE_REWARD, scores, self._errors[self._end()], wall_s)
        return ExecutionResult(float(np.mean(scores)), scores, "", wall_s)

    def _end(self) -> int:
        return min(self._errors, default=self.num_splits)
