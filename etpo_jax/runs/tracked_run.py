"""What trackers show of a run: its settings, the rows of its log, samples and the best program."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from etpo_jax.config import Config
from etpo_jax.runs import directory, files

SAMPLE_COLUMNS = ("env_step", "reward", "error", "action", "prompt")
"""Columns of a table of samples."""

_TABLES = 20
_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class BestProgram:
    """The best program of a run so far.

    Attributes:
      code: the content of `best_code.py`.
      facts: the content of `best.json`.
    """

    code: str
    facts: files.Row


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers see it when they start.

    Attributes:
      path: the run directory, cut back to its checkpoint.
      title: name of the run for lists of runs.
      settings: JSON value of each setting by name.
      facts: versions, commit and command line, the content of `versions.json`.
      num_env_steps: environment steps at the end of the run.
      num_updates: updates at the end of the run.
      update: updates that earlier processes of the run have done.
    """

    path: Path
    title: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    num_env_steps: int
    num_updates: int
    update: int

    @classmethod
    def read(cls, path: Path, config: Config, update: int) -> "TrackedRun":
        """The run in a run directory, of which `update` updates are done."""
        return cls(
            path=path,
            title=f"{config.run.algorithm} on {config.task.title}, seed {config.run.seed}",
            settings=files.to_json(config.to_dict()),
            facts=files.read_json(path / directory.VERSIONS),
            num_env_steps=config.run.num_env_steps,
            num_updates=math.ceil(config.run.num_env_steps / config.run.collection_size),
            update=update,
        )

    @property
    def folder(self) -> Path:
        """Folder of trackers in the run directory; made when it is first asked for."""
        folder = self.path / directory.TRACKERS
        folder.mkdir(exist_ok=True)
        return folder

    def stored_id(self, tracker: str) -> str | None:
        """The id under which a tracker knows the run; None before `store_id`."""
        file = self.folder / f"{tracker}.id"
        return file.read_text().strip() if file.exists() else None

    def store_id(self, tracker: str, run_id: str) -> None:
        """Keeps the id, so that a resumed run goes on under it."""
        files.replace(self.folder / f"{tracker}.id", f"{run_id}\n")

    def history(self) -> Iterator[tuple[files.Row, list[files.Row]]]:
        """Yields each row of `metrics.jsonl` with the rows of `episodes.jsonl` of its update."""
        episodes = files.read_rows(self.path / directory.EPISODES)
        following = next(episodes, None)
        for row in files.read_rows(self.path / directory.METRICS):
            of_update = []
            while following is not None and following["env_step"] <= row["env_step"]:
                of_update.append(following)
                following = next(episodes, None)
            yield row, of_update

    def last_row(self) -> files.Row | None:
        """The last row of `metrics.jsonl`; None before the first update."""
        rows = collections.deque(files.read_rows(self.path / directory.METRICS), maxlen=1)
        return rows[0] if rows else None

    def shows_samples(self, row: Mapping[str, Any]) -> bool:
        """True for the first update, the last and about twenty between them."""
        update, every = row["update"], math.ceil(self.num_updates / _TABLES)
        return update == 1 or update % every == 0 or self.is_last(row)

    def is_last(self, row: Mapping[str, Any]) -> bool:
        """True for the row of the last update of the run."""
        return row["env_step"] >= self.num_env_steps

    def best(self) -> BestProgram | None:
        """The best program as its files have it now; None while no program has run."""
        if not (self.path / directory.BEST).exists():
            return None
        code = (self.path / directory.BEST_CODE).read_text(encoding="utf-8")
        return BestProgram(code, files.read_json(self.path / directory.BEST))


class Tracker(Protocol):
    """A service that shows runs. Every method may raise; then the tracker is given up.

    Attributes:
      next_update: number of the first update that the service does not have yet.
    """

    next_update: int

    def write(self, row: Mapping[str, Any], samples: Sequence[Sequence[Any]]) -> None:
        """Shows a row of `metrics.jsonl`, and samples as rows of `SAMPLE_COLUMNS`, if any."""

    def write_best(self, best: BestProgram, update: int) -> None:
        """Shows the best program after an update, in place of an earlier one."""

    def write_scores(self, numbers: Mapping[str, float], update: int) -> None:
        """Shows the final scores by name, once, after the last update of a process."""

    def close(self, *, is_finished: bool) -> None:
        """Ends the process's part; `is_finished` says that all environment steps are done."""


def samples_of(episodes: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """A few executed actions of one update as rows of `SAMPLE_COLUMNS`."""
    return [[_legal(episode[name]) for name in SAMPLE_COLUMNS] for episode in episodes[:_SAMPLES]]


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of `metrics.jsonl` by name; NaN and infinities are kept."""
    numbers = {name: files.to_number(value) for name, value in row.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _legal(value: Any) -> Any:
    """A text whose lone surrogates, which UTF-8 does not have, are Python's escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
