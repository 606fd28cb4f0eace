"""The run directory: its files, its only writer, and the way back to the last checkpoint.

`RunDirectory.open` resumes what a killed process left. `runs.checkpoint` writes the arrays.
"""

import csv
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
from etpo_jax.runs import files, steps, top_programs, versions
from etpo_jax.runs.best import Best, write_preparation

FLAGS = "flags.cfg"
CONFIG = "config.json"
VERSIONS = "versions.json"
MODEL_FINGERPRINT = "model_fingerprint.json"
METRICS = "metrics.jsonl"
EPISODES = "episodes.jsonl"
BEST_CODE = "best_code.py"
BEST = "best.json"
PREPARATION = "preparation.json"
TOP_PROGRAMS = "top_programs"
FINISHED = "finished.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
TRACKERS = "trackers"
TOKENS = "tokens.jsonl"
SCORES = "scores.json"
CURVE = "curve.png"
REPORT = "report.html"

# What `overwrite` may delete. Files of other names in the folder belong to somebody else.
_RESULTS = (
    *(METRICS, EPISODES, TOKENS, BEST_CODE, BEST, TOP_PROGRAMS, PREPARATION, SCORES, FINISHED),
    *(CHECKPOINTS, TENSORBOARD, TRACKERS, CURVE, REPORT),
)
_LOCK = ".etpo_jax.lock"
# Name of the configuration while a run is being given up: its results no longer count.
_GIVEN_UP = ".etpo_jax.given_up"
# Key in `versions.json` that marks a folder as a run directory; its value is the layout. Layout 2:
# settings by section and checkpoints of any registered algorithm.
_FORMAT_KEY = "run_directory_format"
_FORMAT = 2
_ABSENT = object()


class RunDirectory:
    """A run directory that only this process may write until it closes the directory or dies."""

    def __init__(self, path: Path, lock: int, setup: dict[str, Any]) -> None:
        """Called by `open` only."""
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
        """Creates a run directory, or opens an existing one to resume its run.

        Args:
          path: the folder; created with its parents.
          config: the whole resolved configuration, flag name to JSON value.
          may_differ: flags whose value may change when a run is resumed; the new value is stored.
          overwrite: start anew: delete the results of an earlier run, but no foreign file.
          defaults: values that stand for flags which the stored configuration does not have yet.
        Raises:
          UsageError: another process writes the run, the stored run has other flags (the message
            names each with both values) or another layout, the folder is not empty and holds no
            run, or it cannot be created.
          OSError: naming the file that could not be written.
        """
        path = Path(path).expanduser()
        config = files.to_json(config)
        flag_lines = "".join(_flag_line(*item) for item in config.items() if item[1] is not None)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"run directory {path} cannot be created: {error.strerror}") from error
        refuse_foreign(path)  # before anything is written
        lock = _take_lock(path)
        try:
            # Checked again, because another process may have held the lock until now.
            refuse_foreign(path)
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
        """Releases the lock, so that another process may write the run."""
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
    def finished(self) -> dict[str, Any] | None:
        """The summary given to `mark_finished`; None for a run that has not reached its end."""
        file = self.path / FINISHED
        return files.read_json(file) if file.exists() else None

    def record(self, **facts: Any) -> None:
        """Adds facts to `versions.json` that are known after the start, such as the devices."""
        if any(self._setup.get(name, _ABSENT) != value for name, value in facts.items()):
            self._setup |= facts
            files.write_json(self.path / VERSIONS, self._setup)

    def cut_back(self, *, update: int, env_step: int, best: Best | None) -> None:
        """Takes the directory back to its last committed checkpoint, before training continues.

        Later rows, torn rows, final scores and the mark of a finished run are removed, and the
        checkpoint's best program replaces the stored one. `runs.trackers` rewrites its events from
        the rows that are left. A repeated call changes nothing.

        Args:
          update: number of updates in the checkpoint, the last that `metrics.jsonl` keeps; -1
            without a checkpoint.
          env_step: number of environment steps in the checkpoint, the last that `episodes.jsonl`
            keeps; -1 without a checkpoint.
          best: best program in the checkpoint, if any.
        """
        (self.path / FINISHED).unlink(missing_ok=True)
        (self.path / SCORES).unlink(missing_ok=True)
        _cut_rows(self.path / METRICS, "update", update)
        _cut_rows(self.path / EPISODES, "env_step", env_step)
        if best is None:
            (self.path / BEST_CODE).unlink(missing_ok=True)
            (self.path / BEST).unlink(missing_ok=True)
        else:
            self.write_best(best)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds the row of one update to `metrics.jsonl`.

        Args:
          row: JSON or NumPy scalars by name; `update`, the number of updates done with this one,
            grows from row to row.
        """
        _check_count(row, "update")
        files.append_rows(self.path / METRICS, [row])

    def append_episodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds one row per executed action to `episodes.jsonl`.

        Args:
          rows: JSON values by name; `env_step`, the number of environment steps done with this
            one, never falls.
        """
        for row in rows:
            _check_count(row, "env_step")
        files.append_rows(self.path / EPISODES, rows)

    def write_best(self, best: Best) -> None:
        """Replaces `best_code.py` and `best.json`."""
        files.write_json(self.path / BEST, best.to_json())
        is_script = (self.path / PREPARATION).exists()
        files.replace(self.path / BEST_CODE, best.code(is_script=is_script))

    def write_top_programs(self, programs: Sequence[Best]) -> None:
        """Replaces the programs in `top_programs`, the best first."""
        is_script = (self.path / PREPARATION).exists()
        top_programs.write(self.path / TOP_PROGRAMS, programs, is_script=is_script)

    def write_preparation(self, preparation: Mapping[str, Any]) -> None:
        """Replaces `preparation.json`; a run that began with other rows raises UsageError."""
        write_preparation(self.path / PREPARATION, preparation)

    def write_tokens(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Replaces `tokens.jsonl`: one row per action, as `inspection.to_rows` makes them."""
        files.replace(self.path / TOKENS, files.json_lines(actions))

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished; `finished` returns `summary` from now on."""
        files.write_json(self.path / FINISHED, summary)


class FollowedRun(RunDirectory):
    """A run directory on hosts other than the first: every write is left to the first host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = None

    def _do_nothing(self, *arguments: Any, **options: Any) -> None:
        pass

    record = cut_back = append_metrics = append_episodes = write_best = _do_nothing
    write_top_programs = write_preparation = write_tokens = mark_finished = _do_nothing


def is_run_directory(path: Path) -> bool:
    """True for a folder that `RunDirectory.open` made, whatever its layout."""
    try:
        return _FORMAT_KEY in files.read_json(path / VERSIONS)
    except (FileNotFoundError, NotADirectoryError, UsageError):
        return False


def open_for_reading(path: Path) -> dict[str, Any]:
    """Checks that a folder is a run directory of this layout; the run may be under way.

    Returns: its stored configuration, flag name to value.
    Raises:
      UsageError: the folder is no run directory, or another version of the program wrote it.
    """
    if not is_run_directory(path):
        raise UsageError(f"--run_dir={path}: is no run directory")
    _check_layout(path, "read it with the version that wrote it")
    try:
        return files.read_json(path / CONFIG)
    except FileNotFoundError as error:
        raise UsageError(f"run directory {path} has lost its {CONFIG}") from error


def check_settings(path: Path, config: Mapping[str, Any], may_differ: frozenset[str]) -> None:
    """Checks that a run is read with the settings that it was made with.

    Raises:
      UsageError: naming the settings that differ, or the folder is no run of this version.
    """
    differences = _differences(open_for_reading(path), files.to_json(config), may_differ)
    if differences:
        raise UsageError(f"{path} holds a run with other settings: {differences}")


def _check_layout(path: Path, advice: str) -> None:
    layout = files.read_json(path / VERSIONS)[_FORMAT_KEY]
    if layout != _FORMAT:
        age = "an earlier" if isinstance(layout, int) and layout < _FORMAT else "another"
        raise UsageError(
            f"run directory {path} was written by {age} version (layout {layout}, this version "
            f"has layout {_FORMAT}): {advice}"
        )


# Order of writes in the life of a run directory: versions.json marks the folder as a run directory,
# then comes flags.cfg, then config.json, from which on the run is resumed. To give up a run, its
# config.json is renamed before results are deleted; a start that finds the renamed file goes on
# deleting.


def refuse_foreign(path: Path) -> None:
    names = {name for name in os.listdir(path) if not files.is_unfinished(name)} - {_LOCK}
    if names and not is_run_directory(path):
        raise UsageError(
            f"{path} is not empty and holds no run: name a new or an empty folder with --run_dir"
        )


def _take_lock(path: Path) -> int:
    """Locks the directory with an open file, which `close` and the death of the process release."""
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
        with files.naming(path / _LOCK):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_unfinished(path: Path) -> None:
    for name in os.listdir(path):
        if files.is_unfinished(name):
            (path / name).unlink(missing_ok=True)


def _create(path: Path, config: Mapping[str, Any], flag_lines: str) -> dict[str, Any]:
    setup = _new_setup(versions.current())
    files.write_json(path / VERSIONS, setup)
    for name in (MODEL_FINGERPRINT, PREPARATION):
        (path / name).unlink(missing_ok=True)
    files.replace(path / FLAGS, flag_lines)
    files.write_json(path / CONFIG, config)
    return setup


def _give_up(path: Path) -> None:
    if (path / CONFIG).exists():
        os.replace(path / CONFIG, path / _GIVEN_UP)
        files.sync_folder(path)
    for name in _RESULTS:
        item = path / name
        # A link may lead to a larger disk; the folder that it names is not the run's to delete.
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
    _check_layout(path, "--overwrite starts it anew, or finish it with the version that began it")
    setup = files.read_json(path / VERSIONS)
    try:
        stored = {**files.to_json(defaults), **files.read_json(path / CONFIG)}
    except UsageError as error:
        raise UsageError(f"{error}; --overwrite starts the run anew") from error
    differences = _differences(stored, config, may_differ)
    if differences and not has_begun(path):
        # The run ended before its first update, perhaps by a mistyped name: nothing is lost.
        return _create(path, config, flag_lines)
    if differences:
        raise UsageError(
            f"run directory {path} holds a run with other settings: {differences}; "
            "--overwrite starts it anew"
        )
    files.replace(path / FLAGS, flag_lines)
    files.write_json(path / CONFIG, config)
    return _compare_versions(path, setup)


def has_begun(path: Path) -> bool:
    """True once the run has written any result."""
    checkpoints = path / CHECKPOINTS
    made_before = {PREPARATION, CHECKPOINTS, TENSORBOARD, TRACKERS}  # the first update
    return any((path / name).exists() for name in {*_RESULTS} - made_before) or (
        checkpoints.is_dir() and any(checkpoints.iterdir())
    )


def _compare_versions(path: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts for `versions.json`; replaced ones are kept under `earlier`."""
    current = versions.current()
    changed = [name for name, value in current.items() if setup.get(name, _ABSENT) != value]
    if not changed:
        return setup
    logging.warning(
        "%s was written with other versions; its figures may not repeat exactly: %s",
        path,
        ", ".join(f"{name} {setup.get(name)} -> {current[name]}" for name in changed),
    )
    earlier = setup.pop("earlier", [])
    new_setup = _new_setup(current) | {"earlier": [*earlier, setup]}
    files.write_json(path / VERSIONS, new_setup)
    return new_setup


def _new_setup(current: Mapping[str, Any]) -> dict[str, Any]:
    return {_FORMAT_KEY: _FORMAT, "command": versions.command(), **current}


def _differences(
    stored: Mapping[str, Any], config: Mapping[str, Any], may_differ: frozenset[str]
) -> str:
    """Settings that have changed although they may not, with both values; empty if none has."""
    return ", ".join(
        f"--{name} was {_describe(stored, name)} and is now {_describe(config, name)}"
        for name in {**stored, **config}
        if name not in may_differ and stored.get(name, _ABSENT) != config.get(name, _ABSENT)
    )


def _describe(config: Mapping[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "not set"


def _flag_line(name: str, value: Any) -> str:
    """Formats a flag as a line that absl's `--flagfile` reads back."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(value)
        text = buffer.getvalue()
    else:
        text = str(value)
    # absl strips white space from the end of a line and keeps the rest as it is.
    is_line = text == text.rstrip() and len(text.splitlines()) < 2 and "\0" not in text
    if not is_line or not steps.is_text(text):
        raise UsageError(
            f"--{name}={text!a}: {FLAGS} holds lines of UTF-8 without white space at the end"
        )
    return f"--{name}={text}\n"


def _cut_rows(path: Path, key: str, committed: int) -> None:
    last = files.cut_rows(path, lambda row: isinstance(row.get(key), int) and row[key] <= committed)
    reached = last[key] if last else 0
    if reached < committed:
        logging.warning(
            "%s ends at %s %d but the checkpoint was saved at %d: rows are missing",
            path,
            key,
            reached,
            committed,
        )


def _check_count(row: Mapping[str, Any], name: str) -> None:
    if not isinstance(row.get(name), numbers.Integral):
        raise ValueError(f"the row needs a whole number {name!r}, not {row.get(name)!r}")
