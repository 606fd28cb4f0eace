"""The folder of a run: who may write it, what it holds, and how it goes back to a checkpoint.

Everything here may be killed at any moment; `RunDirectory.open` resumes what is left. No arrays
pass through this module: checkpoints are written by others, into `checkpoints_path`.
"""

import csv
import dataclasses
import fcntl
import io
import json
import numbers
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import logging

from env.base import UsageError
from etpo_jax.runs import durable, event_files, json_files, versions

FLAGS = "flags.cfg"
CONFIG = "config.json"
VERSIONS = "versions.json"
MODEL = "model.json"
METRICS = "metrics.jsonl"
EPISODES = "episodes.jsonl"
BEST_CODE = "best_code.py"
BEST = "best.json"
FINISHED = "finished.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
TOKENS = "tokens.jsonl"
CURVE = "curve.png"
REPORT = "report.html"

# What `overwrite` may delete. Files of other names in the folder are somebody else's.
_RESULTS = (
    METRICS,
    EPISODES,
    BEST_CODE,
    BEST,
    FINISHED,
    CHECKPOINTS,
    TENSORBOARD,
    TOKENS,
    CURVE,
    REPORT,
)
_LOCK = ".etpo_jax.lock"
# The configuration of a run that is being given up: from here on its results count for nothing.
_GIVEN_UP = ".etpo_jax.given_up"
# In `versions.json`: the folder is a run directory, laid out as this module does it.
_FORMAT_KEY = "run_directory_format"
_FORMAT = 1
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Best:
    """The best program of a run so far.

    Attributes:
      reward: r of Eq. 10, the mean over the splits.
      split_scores: ROC AUC on each split.
      env_step: environment steps of the run when it was executed, itself included.
      action: the text that the policy wrote.
      program: the action as a text that stands on its own.
    """

    reward: float
    split_scores: tuple[float, ...]
    env_step: int
    dataset: str
    seed: int
    action: str
    program: str

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values, for `best.json` and checkpoints."""
        return json_files.to_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Best":
        """The inverse of `to_json`."""
        return cls(**{**values, "split_scores": tuple(values["split_scores"])})

    def code(self) -> str:
        """The program under a comment that says where it comes from."""
        by_split = " ".join(f"{score:.4f}" for score in self.split_scores)
        header = (
            "Best program of an etpo_jax run.",
            f"score {self.reward:.6f}" + (f", by split: {by_split}" if by_split else ""),
            f"data set {self.dataset}, environment step {self.env_step}, seed {self.seed}",
        )
        comment = "".join(f"# {' '.join(line.split())}\n" for line in header)
        return f"{comment}\n{self.program.rstrip()}\n"


class RunDirectory:
    """A run directory that this process alone writes, until `close` or its death."""

    def __init__(self, path: Path, lock: int, setup: dict[str, Any]) -> None:
        """For `open`, which is the way to get one."""
        self.path = path
        self._lock: int | None = lock
        self._setup = setup

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        may_differ: frozenset[str],
        overwrite: bool,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> "RunDirectory":
        """Makes a run directory, or resumes the one that is there.

        Args:
          path: the folder; made with its parents.
          config: flag name to JSON value, the whole resolved configuration.
          may_differ: flags that a resumed run may have with another value; the new one is stored.
          overwrite: start anew: what an earlier run left there is deleted, files that no run
            writes stay.
          defaults: values of flags that are younger than the run there: it ran as if with these.
        Raises:
          UsageError: another process writes the run, the run there has other flags (each is named
            with both values), the folder holds something that is no run, or it cannot be made.
          OSError: naming what could not be written.
        """
        path = Path(path).expanduser()
        config = json_files.to_json(config)
        flag_lines = "".join(_flag_line(*item) for item in config.items() if item[1] is not None)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"run directory {path} cannot be made: {error.strerror}") from error
        # Asked before anything is written: a folder of something else stays as it is.
        _refuse_foreign(path)
        lock = _take_lock(path)
        try:
            # Asked again: another process may have had the lock until now.
            _refuse_foreign(path)
            _remove_unfinished(path)
            is_given_up = (path / _GIVEN_UP).exists() and not (path / CONFIG).exists()
            if overwrite or is_given_up:
                _give_up(path)
            if (path / CONFIG).exists():
                setup = _resume(path, config, flag_lines, may_differ, defaults)
            elif any((path / name).exists() for name in _RESULTS):
                raise UsageError(
                    f"run directory {path} has lost its {CONFIG}: --overwrite starts it anew"
                )
            else:
                setup = _create(path, config, flag_lines)
            (path / _GIVEN_UP).unlink(missing_ok=True)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock, setup)

    def close(self) -> None:
        """Lets other processes write the run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def checkpoints_path(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def tensorboard_path(self) -> Path:
        return self.path / TENSORBOARD

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `mark_finished` was given; None while the run is under way."""
        file = self.path / FINISHED
        return json_files.read(file) if file.exists() else None

    def record(self, **facts: Any) -> None:
        """Adds to `versions.json` what is known only after the start: JSON values by name.

        For example the isolation level in force, or the devices.
        """
        if any(self._setup.get(name, _ABSENT) != value for name, value in facts.items()):
            self._setup |= facts
            json_files.write(self.path / VERSIONS, self._setup)

    def cut_back(self, *, update: int, env_step: int, best: Best | None) -> None:
        """Goes back to what the last committed checkpoint knows; call it before training goes on.

        Rows and events beyond it, torn ends and the mark that the run is finished are removed; the
        best program becomes the checkpoint's. Repeating it changes nothing.

        Args:
          update: updates that the checkpoint holds: rows of `metrics.jsonl` and events beyond go;
            -1 where there is no checkpoint.
          env_step: environment steps that it holds: rows of `episodes.jsonl` beyond go; -1 where
            there is no checkpoint.
          best: the best program that it holds.
        """
        (self.path / FINISHED).unlink(missing_ok=True)
        _cut_rows(self.path / METRICS, "update", update)
        _cut_rows(self.path / EPISODES, "env_step", env_step)
        event_files.cut_events(self.tensorboard_path, update)
        if best is None:
            (self.path / BEST_CODE).unlink(missing_ok=True)
            (self.path / BEST).unlink(missing_ok=True)
        else:
            self.write_best(best)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds the row of one update: JSON or NumPy scalars by name, `update` among them.

        `update` counts the updates done, this row's included, and grows from row to row.
        """
        _check_count(row, "update")
        json_files.append_rows(self.path / METRICS, [row])

    def append_episodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds one row per executed action, `env_step` in each.

        `env_step` counts the environment steps done, the row's included, and never falls.
        """
        for row in rows:
            _check_count(row, "env_step")
        json_files.append_rows(self.path / EPISODES, rows)

    def write_best(self, best: Best) -> None:
        """Makes `best_code.py` and `best.json` those of `best`."""
        json_files.write(self.path / BEST, best.to_json())
        durable.replace(self.path / BEST_CODE, best.code())

    def write_tokens(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Makes `tokens.jsonl` these actions, token by token; see `inspection.to_rows`."""
        lines = [json.dumps(json_files.to_json(action)) + "\n" for action in actions]
        durable.replace(self.path / TOKENS, "".join(lines))

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        """Says that the run has reached its end; `finished` gives `summary` back."""
        json_files.write(self.path / FINISHED, summary)


def is_run_directory(path: Path) -> bool:
    """Whether the folder is one that `RunDirectory.open` made."""
    try:
        return _FORMAT_KEY in json_files.read(path / VERSIONS)
    except (FileNotFoundError, NotADirectoryError, UsageError):
        return False


# A folder's life: versions.json is written first (from then on it is a run's), then flags.cfg, then
# config.json (from then on it is resumed). It ends by the renaming of config.json; results are
# deleted after that, and a start that finds them half deleted goes on deleting.


def _refuse_foreign(path: Path) -> None:
    names = {name for name in os.listdir(path) if not durable.is_unfinished(name)} - {_LOCK}
    if names and not is_run_directory(path):
        raise UsageError(
            f"{path} is not empty and holds no run: give --run_dir a new or an empty folder"
        )


def _take_lock(path: Path) -> int:
    """An open file that holds the lock; closing it, also by dying, releases it."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise UsageError(
            f"run directory {path} is in use by another process ({holder or 'starting'})"
        ) from None
    except OSError as error:
        logging.warning("%s: no lock on this file system (%s)", path, error.strerror)
    try:
        with durable.naming(path / _LOCK):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_unfinished(path: Path) -> None:
    for name in os.listdir(path):
        if durable.is_unfinished(name):
            (path / name).unlink(missing_ok=True)


def _create(path: Path, config: Mapping[str, Any], flag_lines: str) -> dict[str, Any]:
    setup = _new_setup(versions.current())
    json_files.write(path / VERSIONS, setup)
    (path / MODEL).unlink(missing_ok=True)
    durable.replace(path / FLAGS, flag_lines)
    json_files.write(path / CONFIG, config)
    return setup


def _give_up(path: Path) -> None:
    if (path / CONFIG).exists():
        os.replace(path / CONFIG, path / _GIVEN_UP)
        durable.sync_folder(path)
    for name in _RESULTS:
        item = path / name
        # A link to a larger disk, say: what it points to lies outside of the run.
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)


def _resume(
    path: Path,
    config: Mapping[str, Any],
    flag_lines: str,
    may_differ: frozenset[str],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    setup = json_files.read(path / VERSIONS)
    if setup[_FORMAT_KEY] != _FORMAT:
        raise UsageError(
            f"run directory {path} has layout {setup[_FORMAT_KEY]}, this program writes layout "
            f"{_FORMAT}; --overwrite starts it anew"
        )
    try:
        stored = {**json_files.to_json(defaults), **json_files.read(path / CONFIG)}
    except UsageError as error:
        raise UsageError(f"{error}; --overwrite starts the run anew") from error
    differences = [
        f"--{name} is {_describe(stored, name)} there and {_describe(config, name)} here"
        for name in {**stored, **config}
        if name not in may_differ and stored.get(name, _ABSENT) != config.get(name, _ABSENT)
    ]
    if differences and not _has_begun(path):
        # It ended before its first update, by a mistyped data set say: nothing would be lost.
        return _create(path, config, flag_lines)
    if differences:
        raise UsageError(
            f"run directory {path} is of another configuration: {', '.join(differences)}; "
            "--overwrite starts it anew"
        )
    durable.replace(path / FLAGS, flag_lines)
    json_files.write(path / CONFIG, config)
    return _compare_versions(path, setup)


def _has_begun(path: Path) -> bool:
    """Whether the run has written any result."""
    checkpoints = path / CHECKPOINTS
    return any((path / name).exists() for name in _RESULTS if name != CHECKPOINTS) or (
        checkpoints.is_dir() and any(checkpoints.iterdir())
    )


def _compare_versions(path: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """The setup that holds from now on; where it changed, the older is kept under `earlier`."""
    current = versions.current()
    changed = [name for name, value in current.items() if setup.get(name, _ABSENT) != value]
    if not changed:
        return setup
    logging.warning(
        "%s was written by other versions, its figures may not repeat: %s",
        path,
        ", ".join(f"{name} {setup.get(name)} -> {current[name]}" for name in changed),
    )
    earlier = setup.pop("earlier", [])
    new_setup = _new_setup(current) | {"earlier": [*earlier, setup]}
    json_files.write(path / VERSIONS, new_setup)
    return new_setup


def _new_setup(current: Mapping[str, Any]) -> dict[str, Any]:
    return {_FORMAT_KEY: _FORMAT, "command": versions.command(), **current}


def _describe(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "not set"


def _flag_line(name: str, value: Any) -> str:
    """A flag as a line that absl's `--flagfile` reads back."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(value)
        text = buffer.getvalue()
    else:
        text = str(value)
    # absl takes the rest of a line as it is, but for white space at its end.
    if text != text.rstrip() or len(text.splitlines()) > 1:
        raise UsageError(
            f"--{name}={text!r}: line breaks and white space at the end cannot be kept in {FLAGS}"
        )
    return f"--{name}={text}\n"


def _cut_rows(path: Path, key: str, committed: int) -> None:
    last = json_files.cut_rows(path, lambda row: row[key] <= committed)
    reached = last[key] if last else 0
    if reached < committed:
        logging.warning(
            "%s ends at %s %d but the checkpoint is of %d: rows are missing",
            path,
            key,
            reached,
            committed,
        )


def _check_count(row: Mapping[str, Any], name: str) -> None:
    if not isinstance(row.get(name), numbers.Integral):
        raise ValueError(f"the row needs a whole number as {name!r}: {row.get(name)!r}")
