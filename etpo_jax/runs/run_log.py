"""The log of a run, read from its files for pictures, pages and summaries."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from env.tasks.loading import IN_PYTHON
from etpo_jax.runs import directory, files, top_programs
from etpo_jax.runs.final_scores import FinalScores

_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
# Also lists of numbers, of whatever length.
_NUMBERS = re.compile(r"[\d.,\s]*\d[\d.,\s]*")
_KIND_LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Reward and kind of error of each executed action, in the order of execution (axis t)."""

    env_step_t: Int[np.ndarray, "t"]
    reward_t: Float[np.ndarray, "t"]
    kind_t: tuple[str, ...]

    @classmethod
    def read(cls, run_path: Path) -> "Episodes":
        path = run_path / directory.EPISODES
        env_steps, rewards, kinds = [], [], []
        with files.understood(path):
            for row in files.read_rows(path):
                env_steps.append(int(row["env_step"]))
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
      path: the run directory.
      config: flag name to value.
      setup: the content of `versions.json`.
      metrics: the rows of `metrics.jsonl`.
      episodes: the rows of `episodes.jsonl` as arrays.
      best: the best program; None while no program has run.
      top_programs: rows of the index of `top_programs/`, the best program first.
      finished: the summary stored at the end; None for a run that has not reached its end.
      scores: scores of the best program and of baselines; None before the run ends or stops.
      preparation: the content of `preparation.json`; None where the run has none.
    """

    path: Path
    config: dict[str, Any]
    setup: dict[str, Any]
    metrics: tuple[files.Row, ...]
    episodes: Episodes
    best: directory.Best | None
    top_programs: tuple[files.Row, ...]
    finished: dict[str, Any] | None
    scores: FinalScores | None
    preparation: dict[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> "RunLog":
        """Reads a run directory, also while it is being written.

        Raises:
          UsageError: the folder is no run directory, or another version wrote it.
        """
        config = directory.open_for_reading(path)
        index = path / directory.TOP_PROGRAMS / top_programs.INDEX
        return cls(
            path=path,
            config=config,
            setup=files.read_json(path / directory.VERSIONS),
            metrics=_metrics(path / directory.METRICS),
            episodes=Episodes.read(path),
            best=_read(path / directory.BEST, directory.Best.from_json),
            top_programs=_read(index, lambda found: tuple(found["programs"])) or (),
            finished=_read(path / directory.FINISHED),
            scores=_read(path / directory.SCORES, FinalScores.from_json),
            preparation=_read(path / directory.PREPARATION),
        )

    @property
    def title(self) -> str:
        """Algorithm, task and seed as one phrase."""
        config = self.config
        task = config.get("task") or config.get("dataset")
        return f"{config.get('algorithm')} on {task}, seed {config.get('seed')}"

    @property
    def is_in_python(self) -> bool:
        """Whether the task was made in Python, so that no command can make it again."""
        return str(self.config.get("task", "")).endswith(IN_PYTHON)

    def command(self, program: str) -> str:
        """Start of a command line that runs one of our programs, as the run was started."""
        is_module = "-m etpo_jax." in str(self.setup["command"])
        return f"python -m etpo_jax.{program}" if is_module else f"etpo {program}"

    @property
    def env_steps(self) -> int:
        """Number of environment steps up to the last row of `metrics.jsonl`."""
        return int(self.metrics[-1]["env_step"]) if self.metrics else 0

    def column(self, name: str) -> Float[np.ndarray, "u"]:
        """One metric over the updates; NaN where a row has no number of this name."""
        return np.array([files.to_number(row.get(name)) for row in self.metrics], np.float64)

    def numeric_columns(self) -> list[str]:
        """Names of the metrics that are a number in some row, in their order in the file."""
        names = {name: None for row in self.metrics for name in row}
        return [name for name in names if np.isfinite(self.column(name)).any()]


def improvements(run_path: Path) -> list[files.Row]:
    """Rows of `episodes.jsonl` whose program ran and beat all earlier ones, the newest last."""
    found: list[files.Row] = []
    path = run_path / directory.EPISODES
    with files.understood(path):
        for row in files.read_rows(path):
            if not row["error"] and (not found or row["reward"] > found[-1]["reward"]):
                found.append(row)
    return found


@dataclasses.dataclass(frozen=True)
class CommonError:
    """Failures with the same message, numbers aside.

    Attributes:
      error: the message of the shown failure.
      count: number of actions that failed so.
      action: the shortest action that failed so.
      env_step: environment step of that action.
    """

    error: str
    count: int
    action: str
    env_step: int


def common_errors(run_path: Path, count: int) -> list[CommonError]:
    """The commonest errors of a run, the most frequent first."""
    groups: dict[str, list[files.Row]] = {}
    path, found = run_path / directory.EPISODES, []
    with files.understood(path):
        for row in files.read_rows(path):
            if row["error"]:
                groups.setdefault(_NUMBERS.sub("#", row["error"]), []).append(row)
        for rows in sorted(groups.values(), key=len, reverse=True)[:count]:
            shown = min(rows, key=lambda row: len(row["action"]))
            found.append(CommonError(shown["error"], len(rows), shown["action"], shown["env_step"]))
    return found


def error_kind(error: str) -> str:
    """Names the kind of an error: its exception, or else the start of its text; "" for none."""
    first_line = error.strip().split("\n", 1)[0]
    match = _EXCEPTION.match(first_line)
    return match.group() if match else first_line.split(":", 1)[0][:_KIND_LENGTH]


def running_mean(values: Sequence[float] | np.ndarray, window: int) -> Float[np.ndarray, "u"]:
    """Mean over a window of neighbours centred on each entry; NaN entries do not count.

    At both ends the window is shorter, so that the curve has as many points as `values`.
    """
    values = np.asarray(values, np.float64)
    is_known = np.isfinite(values)
    kernel = np.ones(window)
    # The mode "same" of NumPy would swap the two arguments where the window is the longer one.
    start = (window - 1) // 2
    cut = slice(start, start + len(values))
    total = np.convolve(np.where(is_known, values, 0.0), kernel, "full")[cut]
    count = np.convolve(is_known.astype(np.float64), kernel, "full")[cut]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothing_window(num_points: int) -> int:
    """Width of the running mean: an odd number, a tenth of the points; 1 for short curves."""
    return 1 if num_points < 8 else 2 * max(1, num_points // 20) + 1


def _read(path: Path, parse: Callable[[dict[str, Any]], Any] = dict) -> Any:
    """The object in a file, parsed; None without the file."""
    if not path.exists():
        return None
    with files.understood(path):
        return parse(files.read_json(path))


def _metrics(path: Path) -> tuple[files.Row, ...]:
    rows = tuple(files.read_rows(path))
    with files.understood(path):
        for row in rows:
            _ = int(row["env_step"]), int(row["update"])
    return rows
