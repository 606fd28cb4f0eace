"""Checkpoints of a whole run with orbax: algorithm, replay, and the counters of the host."""

import contextlib
import functools
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from env.base import UsageError
from etpo_jax.devices import hosts
from etpo_jax.roles import Role
from etpo_jax.runs import files, steps
from etpo_jax.runs.steps import DamagedError, committed_steps
from models.sharding import shardings

_MAX_REASON = 300
_RAISED = ("raised an exception", "Failed to get metadata")
# Errors of the operating system that TensorStore reports as text.
_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")


class Checkpoints:
    """Numbered checkpoints in one folder, written in the background; a context manager.

    Each checkpoint holds the checkpointables `state` (a pytree of arrays), `replay` (NumPy arrays)
    and `host` (a JSON value). Its number is the number of updates done.
    """

    def __init__(self, path: Path, keep: int):
        """Opens the folder, which is made; damaged checkpoints in it are set aside.

        Args:
          path: the folder.
          keep: number of the newest checkpoints that are kept.

        Raises:
          UsageError: for a folder that several hosts cannot reach by its name.
        """
        training = ocp.training
        self._path = path
        self._newest: int | None = None
        self._saving: Any = None
        self._write_s: float | None = None
        self._is_proved = False
        self._context = contextlib.ExitStack()
        _hide_what_is_raised()
        hosts.first_then_all(self._prepare, lambda: None)
        with self._naming(path):
            literal = self._context.enter_context(steps.literal(path))
            self._context.enter_context(_context())
            # The default policies skip saves silently, but the caller chooses which updates to
            # save.
            self._checkpointer = self._context.enter_context(
                training.Checkpointer(
                    str(literal),
                    save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                    preservation_policy=training.preservation_policies.LatestN(keep),
                )
            )

    def _prepare(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        if hosts.count() > 1 and not steps.is_literal(self._path):
            raise UsageError(
                f"{self._path}: several hosts need a folder whose name has none of *?[]\\:"
            )
        steps.set_damaged_aside(self._path)

    @property
    def latest(self) -> int | None:
        """Number of the newest whole checkpoint, or None."""
        return next(reversed(committed_steps(self._path)), None)

    @property
    def write_s(self) -> float | None:
        """Seconds that the newest checkpoint of this process took; None while it is written."""
        is_waited_for = self._newest is not None and self._write_s is None
        if is_waited_for and not self._checkpointer.is_saving_in_progress():
            stored = self._checkpointer.checkpointables_metadata(self._newest)
            if stored.init_timestamp_nsecs and stored.commit_timestamp_nsecs:
                self._write_s = 1e-9 * (stored.commit_timestamp_nsecs - stored.init_timestamp_nsecs)
        return self._write_s

    def save(
        self, update: int, state: Any, replay: dict[str, np.ndarray], host: dict[str, Any]
    ) -> None:
        """Starts to write a checkpoint; the arrays may be donated once this call returns.

        The first one is waited for and read back, of `state` the names and shapes alone.

        Raises:
          UsageError: what was written cannot be read back.
          OSError: naming the checkpoint that could not be written.
        """
        self._end_save()
        self._newest, self._write_s = update, None
        wanted = {"state": abstract(state), "replay": replay}
        with self._naming(self._path / str(update)):
            self._saving = self._checkpointer.save_checkpointables_async(
                update, {"state": state, "replay": replay, "host": host}
            )
        if self._is_proved:
            return
        self.wait()
        self._check_fit(update, wanted)
        loaded = self._load(update, {"replay": replay, "host": None})
        for name, array in replay.items():
            if np.asarray(loaded["replay"][name]).tobytes() != array.tobytes():
                raise DamagedError(
                    f"checkpoint {self._path / str(update)} was written, but its {name} reads "
                    "otherwise"
                )
        self._is_proved = True

    def restore(
        self, update: int, state: Any, replay: dict[str, np.ndarray]
    ) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
        """Reads a checkpoint with the shapes, dtypes and shardings of `state` and `replay`.

        Returns: the state, the replay and the host's counters.
        Raises:
          DamagedError: its files cannot be read.
          UsageError: if the checkpoint holds other shapes.
        """
        wanted = {"state": abstract(state), "replay": replay}
        self._check_fit(update, wanted)
        loaded = self._load(update, {**wanted, "host": None})
        return loaded["state"], loaded["replay"], loaded["host"]

    def restore_newest(
        self, state: Any, replay: dict[str, np.ndarray]
    ) -> tuple[int, Any, dict[str, np.ndarray], dict[str, Any]]:
        """Restores the newest checkpoint that can be read, as `restore` does.

        Newer ones, which are damaged, are set aside.

        Returns: the number of the checkpoint and what `restore` returns.
        Raises:
          UsageError: if the newest one holds other shapes, or all of them are damaged.
        """
        reason: DamagedError | None = None
        for update in reversed(committed_steps(self._path)):
            restored = None
            try:
                restored = self.restore(update, state, replay)
            except DamagedError as error:
                reason = error
            if not hosts.any_of(restored is None) and restored is not None:
                return update, *restored
            lost = self._path / str(update)
            text = str(reason).removeprefix(f"checkpoint {lost} cannot be read: ")
            hosts.first_then_all(lambda: steps.set_aside(lost, text), lambda: None)  # noqa: B023
            self._checkpointer.reload()
        raise UsageError(f"{reason}; no other one is left, --overwrite starts the run anew")

    def wait(self) -> None:
        """Waits until every checkpoint that was started is committed.

        Raises:
          OSError: naming the checkpoint that could not be written.
        """
        self._end_save()
        with self._naming(self._path / str(self._newest)):
            self._checkpointer.wait()

    def _end_save(self) -> None:
        """Takes the outcome of the save before: else orbax keeps its thread and three files.

        Orbax leaves it to the system when its files reach the disk; here they do at once.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._naming(self._path / str(self._newest)):
                saving.result()
                folder = self._path / str(self._newest)
                if hosts.is_first() and folder.is_dir():
                    files.sync_tree(folder)

    def _check_fit(self, update: int, wanted: dict[str, Any]) -> None:
        folder = self._path / str(update)
        with _reading(folder):
            found = self._checkpointer.checkpointables_metadata(update).metadata
            for part, tree in wanted.items():
                if found.get(part) is None:
                    raise DamagedError(
                        f"checkpoint {folder} cannot be read: its {part} has no headers"
                    )
                if difference := misfit(found[part], tree):
                    raise UsageError(
                        f"checkpoint {folder} does not fit this run: in its {part}, {difference}; "
                        "it was made with other settings or by another version"
                    )

    def _load(self, update: int, wanted: dict[str, Any]) -> dict[str, Any]:
        with _reading(self._path / str(update)):
            return self._checkpointer.load_checkpointables(update, wanted)

    @contextlib.contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        """Names the checkpoint in errors of the operating system that orbax reports as its own."""
        try:
            yield
        except Exception as error:
            if number := system_error(error):
                raise OSError(number, os.strerror(number), str(path)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for checkpoints that are being written."""
        with self._naming(self._path):
            self._context.close()


def misfit(found: Any, wanted: Any) -> str:
    """Where two trees of arrays differ in names or shapes; "" if they do not."""
    has, wants = (_shapes(tree) for tree in (found, wanted))
    differing = [name for name in {**wants, **has} if has.get(name) != wants.get(name)]
    if not differing:
        return ""
    first, more = differing[0], len(differing) - 1
    if first not in has:
        text = f"{first} is missing"
    elif first not in wants:
        text = f"{first} is not of this run"
    else:
        text = f"{first} has shape {list(has[first])} and must have {list(wants[first])}"
    return text + (f" (and {more} more)" if more else "")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
        for keys, leaf in jax.tree.leaves_with_path(tree)
    }


def system_error(error: BaseException) -> int:
    """Number of the operating system's error behind an exception; 0 without one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return seen.errno
        if found := _ERROR_CODE.search(str(seen)):
            return int(found[1])
        seen = seen.__cause__ or seen.__context__
    return 0


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns what libraries raise for damaged files into one `DamagedError`."""
    try:
        yield
    except UsageError as error:
        if isinstance(error, DamagedError):
            _forget_coroutines(None)
        raise
    except (KeyError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        # Wrappers come first in the text, what happened comes last.
        text = " ".join(str(error).split())
        text = text if len(text) <= _MAX_REASON else f"... {text[-_MAX_REASON:]}"
        _forget_coroutines(error)
        raise DamagedError(f"checkpoint {folder} cannot be read: {text}") from error


def _forget_coroutines(error: BaseException | None) -> None:
    """Ends what orbax began and will not await any more, which Python would complain of."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__cause__ or error.__context__
            gc.collect()
    finally:
        sys.unraisablehook = hook


def read_role(folder: Path, keys: tuple[str, ...], mesh: Mesh) -> Role:
    """Reads the variables of one network from a checkpoint, and nothing else.

    Args:
      folder: folder of the checkpoint itself.
      keys: path to the variables in the state, such as ("critic", "trunk").
      mesh: devices that get the variables, whatever sharding they were saved with.

    Raises:
      DamagedError: the checkpoint cannot be read.
      UsageError: it has no variables under these keys.
    """
    _hide_what_is_raised()
    with steps.literal(folder) as path, _reading(folder):
        subtree: Any = ocp.checkpointables_metadata(path).metadata["state"]
        if subtree is None:
            raise DamagedError(f"checkpoint {folder} cannot be read: its state has no headers")
        for key in keys:
            if key not in subtree:
                raise UsageError(f"checkpoint {folder} has no {'/'.join(keys)}")
            subtree = subtree[key]
        abstract: Any = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            subtree,
            shardings(subtree, mesh),
        )
        for key in reversed(keys):
            abstract = {key: abstract}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            loaded = ocp.load_checkpointables(path, {"state": abstract})["state"]
    for key in keys:
        loaded = loaded[key]
    return loaded


def _hide_what_is_raised() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_raised)  # which adds it once
    hook = sys.unraisablehook
    if not (isinstance(hook, functools.partial) and hook.func is _report_unless_late):
        sys.unraisablehook = functools.partial(_report_unless_late, hook)


def _report_unless_late(report: Callable[[Any], None], unraisable: Any) -> None:
    """Hides that TensorStore finished what nobody awaits any more, since another part had failed.

    Its threads then call an event loop that is closed, each with one traceback of these two lines.
    """
    is_late = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
    if not is_late:
        report(unraisable)


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Hides errors that orbax and asyncio log although they are raised, here or there."""
    error = record.exc_info[1] if record.exc_info else None
    is_raised = error is not None or any(text in record.getMessage() for text in _RAISED)
    places = [record.pathname]
    trace = error.__traceback__ if error is not None and record.name == "asyncio" else None
    while trace is not None:
        places.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    # An error of TensorStore that nobody awaited has no place, but says what it wrote.
    is_theirs = any("orbax" in place for place in places) or "tensorstore_spec" in str(error)
    return not (is_raised and is_theirs)


def _context() -> ocp.Context:
    """Orbax context that stores `host` as one JSON file instead of leaf by leaf."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="host")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of the arrays of a tree."""
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree
    )
