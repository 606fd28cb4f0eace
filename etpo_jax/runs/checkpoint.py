"""Checkpoints of a whole run with orbax: algorithm, replay, and the counters of the host."""

import contextlib
import logging
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from env.base import UsageError
from etpo_jax.roles import Role
from models.sharding import shardings

METADATA = "_CHECKPOINT_METADATA"
"""The file that marks a folder as a committed orbax checkpoint."""


class Checkpoints:
    """Numbered checkpoints in one folder, written in the background; a context manager.

    Each checkpoint holds the checkpointables `state` (a pytree of arrays), `replay` (NumPy arrays)
    and `host` (a JSON value). Its number is the number of updates done.
    """

    def __init__(self, path: Path, keep: int):
        training = ocp.training
        self._newest: int | None = None
        self._saving: Any = None
        self._write_s: float | None = None
        self._context = contextlib.ExitStack()
        logger = logging.getLogger("absl")
        logger.addFilter(_is_not_raised)
        self._context.callback(logger.removeFilter, _is_not_raised)
        self._context.enter_context(_context())
        # The default policies skip saves silently, but the caller chooses which updates to save.
        self._checkpointer = self._context.enter_context(
            training.Checkpointer(
                str(path.absolute()),
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=training.preservation_policies.LatestN(keep),
            )
        )

    @property
    def latest(self) -> int | None:
        """Number of the newest committed checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

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
        """Starts to write a checkpoint; the arrays may be donated once this call returns."""
        self._end_save()
        self._newest, self._write_s = update, None
        self._saving = self._checkpointer.save_checkpointables_async(
            update, {"state": state, "replay": replay, "host": host}
        )

    def restore(
        self, update: int, state: Any, replay: dict[str, np.ndarray]
    ) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
        """Reads a checkpoint with the shapes, dtypes and shardings of `state` and `replay`.

        Returns: the state, the replay and the host's counters.
        Raises:
          UsageError: if the checkpoint holds other shapes.
        """
        try:
            loaded = self._checkpointer.load_checkpointables(
                update, {"state": abstract(state), "replay": replay, "host": None}
            )
        except ValueError as error:
            raise UsageError(f"checkpoint {update} does not fit this run: {error}") from error
        return loaded["state"], loaded["replay"], loaded["host"]

    def wait(self) -> None:
        """Waits until every checkpoint that was started is committed."""
        self._end_save()
        self._checkpointer.wait()

    def _end_save(self) -> None:
        """Takes the outcome of the save before: else orbax keeps its thread and three files."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for checkpoints that are being written."""
        self._context.close()


def committed_steps(path: Path) -> list[int]:
    """Lists the numbers of the committed checkpoints in a folder, the newest last."""
    if not path.is_dir():
        return []
    return sorted(
        int(child.name)
        for child in path.iterdir()
        if child.name.isdecimal() and (child / METADATA).is_file()
    )


def choose(path: Path, wanted: int | None) -> int:
    """Finds the number of the wanted checkpoint in a folder, or of the newest one for None.

    Raises:
      UsageError: the folder has no committed checkpoint, or not that one.
    """
    steps = committed_steps(path)
    if wanted is None and not steps:
        raise UsageError(f"{path.parent} has no checkpoint yet")
    if wanted is not None and wanted not in steps:
        present = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--checkpoint={wanted}: {path} holds {present}")
    return steps[-1] if wanted is None else wanted


def read_role(path: Path, keys: tuple[str, ...], mesh: Mesh) -> Role:
    """Reads the variables of one network from a checkpoint, and nothing else.

    Args:
      path: folder of the checkpoint itself.
      keys: path to the variables in the state, such as ("critic", "trunk").
      mesh: devices that get the variables, whatever sharding they were saved with.

    Raises:
      UsageError: the checkpoint cannot be read, or has no variables under these keys.
    """
    try:
        subtree: Any = ocp.checkpointables_metadata(path.absolute()).metadata["state"]
        for key in keys:
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
            loaded = ocp.load_checkpointables(path.absolute(), {"state": abstract})["state"]
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(f"checkpoint {path} cannot be read: {error}") from error
    for key in keys:
        loaded = loaded[key]
    return loaded


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Hides errors of background saves, which orbax logs although it raises them as well."""
    is_raised = record.exc_info or "raised an exception" in record.getMessage()
    return not ("orbax" in record.pathname and is_raised)


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
