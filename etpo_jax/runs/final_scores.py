"""Scores at the end of a run: its best program beside baselines, on the splits and on the holdout.

Rewards choose the best program, so its own reward flatters it. The rows of the holdout, which no
reward ever sees, do not.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from env.base import UsageError
from env.execution import baselines
from env.execution.error_text import elide
from env.execution.results import ExecutionResult, Executor
from env.tables.table import Dataset
from etpo_jax.runs.best import Best

BEST = "best program"
_MAX_ERROR = 80


@dataclasses.dataclass(frozen=True)
class Holdout:
    """Score of a program that was fitted to all other rows.

    Attributes:
      score: score on the rows of the holdout; None where the program failed.
      interval: ends of its 95 % bootstrap interval, if there is one.
      error: why the program failed; "" where it did not.
    """

    score: float | None
    interval: tuple[float, float] | None = None
    error: str = ""

    @classmethod
    def of(cls, result: ExecutionResult) -> Self:
        """The outcome of an executor of the holdout."""
        if result.error:
            return cls(None, error=result.error)
        return cls(result.reward, result.interval)

    def __str__(self) -> str:
        if self.score is None:
            return self.error
        if self.interval is None:
            return f"{self.score:.4f}"
        low, high = self.interval
        return f"{self.score:.4f} ({low:.4f} to {high:.4f})"


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one program.

    Attributes:
      name: `BEST`, or the name of a baseline.
      reward: mean of the split scores; None where the program failed.
      split_scores: score of each split.
      error: why the program failed; "" where it did not.
      holdout: score on the holdout; None where the table has none.
    """

    name: str
    reward: float | None
    split_scores: tuple[float, ...]
    error: str = ""
    holdout: Holdout | None = None


@dataclasses.dataclass(frozen=True)
class FinalScores:
    """Content of `scores.json`.

    Attributes:
      programs: the best program, if any program ran, and the baselines.
      metric: name of the score.
      num_rows: rows that rewards are computed from.
      num_holdout_rows: rows of the holdout, 0 without one.
      seconds: time that it took to compute all this.
    """

    programs: tuple[Scored, ...]
    metric: str
    num_rows: int
    num_holdout_rows: int
    seconds: float

    @property
    def best(self) -> Scored | None:
        """The best program of the run; None where none ran."""
        return next((program for program in self.programs if program.name == BEST), None)

    @property
    def baselines(self) -> tuple[Scored, ...]:
        """The baselines, also those that failed."""
        return tuple(program for program in self.programs if program.name != BEST)

    def lines(self) -> list[str]:
        """The scores as the lines of a table, for a terminal."""
        has_holdout = bool(self.num_holdout_rows)
        rows = [("", self.metric, "holdout (95 % interval)" if has_holdout else "")]
        for program in self.programs:
            reward = "failed" if program.reward is None else f"{program.reward:.4f}"
            holdout = str(program.holdout or "") if has_holdout else ""
            rows.append((program.name, reward, holdout or elide(program.error, _MAX_ERROR)))
        return [f"{name:20} {reward:>8}   {rest}".rstrip() for name, reward, rest in rows]

    def numbers(self) -> dict[str, float]:
        """Scores by name, such as `final/random_forest` and `final_holdout/best_program`."""
        found = {}
        for program in self.programs:
            name = program.name.replace(" ", "_")
            if program.reward is not None:
                found[f"final/{name}"] = program.reward
            if program.holdout is not None and program.holdout.score is not None:
                found[f"final_holdout/{name}"] = program.holdout.score
        return found

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values, for `scores.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**values, "programs": tuple(map(_scored_from_json, values["programs"]))})


def measure(
    dataset: Dataset,
    executor: Executor,
    best: Best | None,
    *,
    metric: str,
    open_holdout: Callable[[], AbstractContextManager[Executor]],
) -> FinalScores:
    """Runs the baselines on the splits, and everything on the holdout, if the table has one.

    Args:
      dataset: the table of the run.
      executor: the executor of the run.
      best: the best program of the run, whose split scores are known.
      metric: name of the score.
      open_holdout: makes an executor that scores programs on the holdout.

    Raises: whatever an executor raises that cannot run any program.
    """
    started = time.monotonic()
    bodies = baselines.bodies(
        has_frame=dataset.frame is not None, is_regression=dataset.is_regression
    )
    programs = [
        Scored(name, None if result.error else result.reward, result.split_scores, result.error)
        for name, result in zip(bodies, executor.run(list(bodies.values())), strict=True)
    ]
    actions = list(bodies.values())
    if best is not None:
        programs.insert(0, Scored(BEST, best.reward, best.split_scores))
        actions.insert(0, best.action)
    if dataset.holdout is not None:
        programs = _with_holdout(programs, actions, open_holdout)
    return FinalScores(
        tuple(programs),
        metric,
        num_rows=len(dataset.labels),
        num_holdout_rows=0 if dataset.holdout is None else len(dataset.holdout.labels),
        seconds=round(time.monotonic() - started, 2),
    )


def _with_holdout(
    programs: Sequence[Scored],
    actions: Sequence[str],
    open_holdout: Callable[[], AbstractContextManager[Executor]],
) -> list[Scored]:
    try:
        with open_holdout() as executor:
            holdouts = [Holdout.of(result) for result in executor.run(actions)]
    except UsageError as error:  # nothing has a score on these rows: they lack a class
        holdouts = [Holdout(None, error=str(error))] * len(actions)
    return [
        dataclasses.replace(program, holdout=holdout)
        for program, holdout in zip(programs, holdouts, strict=True)
    ]


def _scored_from_json(values: Mapping[str, Any]) -> Scored:
    holdout = values["holdout"]
    if holdout is not None:
        interval = holdout["interval"]
        holdout = Holdout(**{**holdout, "interval": tuple(interval) if interval else None})
    scores = tuple(values["split_scores"])
    return Scored(**{**values, "split_scores": scores, "holdout": holdout})
