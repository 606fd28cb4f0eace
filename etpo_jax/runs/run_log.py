"""What the files of a run say, read back for pictures, pages and summaries."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from env.base import UsageError
from etpo_jax.runs import directory, files

_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_KIND_LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One entry per executed action, in the order of execution (axis t)."""

    env_step_t: Int[np.ndarray, "t"]
    reward_t: Float[np.ndarray, "t"]
    kind_t: tuple[str, ...]

    @classmethod
    def read(cls, run_path: Path) -> "Episodes":
        env_steps, rewards, kinds = [], [], []
        for row in files.read_rows(run_path / directory.EPISODES):
            env_steps.append(row["env_step"])
            rewards.append(float(row["reward"]))
            kinds.append(error_kind(row["error"]))
        return cls(np.array(env_steps, np.int64), np.array(rewards, np.float64), tuple(kinds))

    def fifths(self) -> tuple[float, float] | None:
        """Mean reward of the first and of the last fifth of the actions; None below five."""
        count = len(self.reward_t) // 5
        if count == 0:
            return None
        return float(self.reward_t[:count].mean()), float(self.reward_t[-count:].mean())


@dataclasses.dataclass(frozen=True)
class RunLog:
    """A run, finished or under way.

    Attributes:
      config: flag name to value.
      setup: `versions.json`.
      metrics: the rows of `metrics.jsonl`.
      best: None while no action has been executed.
      finished: what the trainer noted at the end; None while the run is under way.
    """

    path: Path
    config: dict[str, Any]
    setup: dict[str, Any]
    metrics: tuple[files.Row, ...]
    episodes: Episodes
    best: directory.Best | None
    finished: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> "RunLog":
        """Reads a run directory, also while it is being written.

        Raises:
          UsageError: the folder is no run directory.
        """
        if not directory.is_run_directory(path):
            raise UsageError(f"{path} is no run directory")
        best_path, finished_path = path / directory.BEST, path / directory.FINISHED
        best = files.read_json(best_path) if best_path.exists() else None
        return cls(
            path=path,
            config=files.read_json(path / directory.CONFIG),
            setup=files.read_json(path / directory.VERSIONS),
            metrics=tuple(files.read_rows(path / directory.METRICS)),
            episodes=Episodes.read(path),
            best=directory.Best.from_json(best) if best else None,
            finished=files.read_json(finished_path) if finished_path.exists() else None,
        )

    @property
    def title(self) -> str:
        """Algorithm, data set and seed in words."""
        names = [self.config.get(name) for name in ("algorithm", "dataset", "seed")]
        return "{} on {}, seed {}".format(*names)

    @property
    def env_steps(self) -> int:
        """Environment steps done."""
        return int(self.metrics[-1]["env_step"]) if self.metrics else 0

    def column(self, name: str) -> Float[np.ndarray, "u"]:
        """One metric over the updates; NaN where a row does not have it."""
        values = (row.get(name) for row in self.metrics)
        return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def improvements(run_path: Path) -> list[files.Row]:
    """Rows of `episodes.jsonl` of programs that ran and beat all before them, the newest last."""
    found: list[files.Row] = []
    for row in files.read_rows(run_path / directory.EPISODES):
        if not row["error"] and (not found or row["reward"] > found[-1]["reward"]):
            found.append(row)
    return found


def error_kind(error: str) -> str:
    """A short name for a family of errors: the exception's, else the text's start; "" stays."""
    first_line = error.strip().split("\n", 1)[0]
    match = _EXCEPTION.match(first_line)
    return match.group() if match else first_line.split(":", 1)[0][:_KIND_LENGTH]


def running_mean(values: Sequence[float] | np.ndarray, window: int) -> Float[np.ndarray, "u"]:
    """Mean over up to `window` neighbours centred on each entry; NaN entries do not count.

    At the ends the window is cut, so that the curve reaches them without inventing values.
    """
    values = np.asarray(values, np.float64)
    is_known = np.isfinite(values)
    kernel = np.ones(window)
    # "full" and an explicit cut: "same" swaps its arguments when the window is the longer one.
    start = (window - 1) // 2
    cut = slice(start, start + len(values))
    total = np.convolve(np.where(is_known, values, 0.0), kernel, "full")[cut]
    count = np.convolve(is_known.astype(np.float64), kernel, "full")[cut]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothing_window(num_points: int) -> int:
    """An odd number of points, about a tenth of the curve; 1 for curves too short to smooth."""
    return 1 if num_points < 8 else 2 * max(1, num_points // 20) + 1
