"""The state of one execution: a body, run once per split."""

import concurrent.futures
import dataclasses

import numpy as np

FAILURE_REWARD = -1.0


@dataclasses.dataclass(frozen=True)
class ExecutionResult:
    """The outcome of one body.

    Attributes:
      reward: mean ROC AUC over the splits (Eq. 10), or -1 if any split failed.
      split_scores: ROC AUC of the splits before the first that failed; all of them on success.
      error: `Type: message` of the first split that failed, fit for a prompt; "" on success.
      wall_s: seconds from the start of its first process to the result.
    """

    reward: float
    split_scores: tuple[float, ...]
    error: str
    wall_s: float


class Execution:
    """Which splits of a body have run, and how they ended.

    Splits may run at the same time and end in any order; the outcome is that of running them one
    after the other until one fails.

    Attributes:
      source: the program, UTF-8.
      future: gets the result.

    Args:
      num_splits: how many splits make the reward.
    """

    def __init__(self, num_splits: int):
        self.source = b""
        self.num_splits = num_splits
        self.future: concurrent.futures.Future[ExecutionResult] = concurrent.futures.Future()
        self._scores: dict[int, float] = {}
        self._errors: dict[int, str] = {}
        self._lost: set[int] = set()
        self._started_at: float | None = None

    def start(self, now: float) -> None:
        """One of the splits starts."""
        if self._started_at is None:
            self._started_at = now

    def score(self, split: int, score: float) -> None:
        """Split `split` went well."""
        self._scores[split] = score

    def fail(self, split: int, error: str) -> None:
        """Split `split` failed; splits after it do not matter any more."""
        self._errors[split] = error

    def lose(self, split: int) -> bool:
        """The process of `split` vanished; returns whether it may be tried again (once)."""
        is_first = split not in self._lost
        self._lost.add(split)
        return is_first

    def is_wanted(self, split: int) -> bool:
        """Whether the outcome of `split` can still matter."""
        return not self.future.done() and split < self._end()

    def is_complete(self) -> bool:
        """Whether the result is known."""
        return all(split in self._scores for split in range(self._end()))

    def result(self, now: float) -> ExecutionResult:
        """The result, once it is known."""
        scores = tuple(self._scores[split] for split in range(self._end()))
        wall_s = 0.0 if self._started_at is None else now - self._started_at
        if self._errors:
            return ExecutionResult(FAILURE_REWARD, scores, self._errors[self._end()], wall_s)
        return ExecutionResult(float(np.mean(scores)), scores, "", wall_s)

    def _end(self) -> int:
        return min(self._errors, default=self.num_splits)
