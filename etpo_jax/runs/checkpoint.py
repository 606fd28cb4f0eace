"""Checkpoints of a whole run with orbax: train state, replay, and the host's counters."""

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

    Each holds the checkpointables `state` (a pytree of arrays), `replay` (NumPy arrays) and `host`
    (a JSON value). The step of a checkpoint is the number of updates done.
    """

    def __init__(self, path: Path, keep: int):
        training = ocp.training
        self._context = contextlib.ExitStack()
        logger = logging.getLogger("absl")
        logger.addFilter(_is_news)
        self._context.callback(logger.removeFilter, _is_news)
        self._context.enter_context(_context())
        # The default policies skip saves silently; which updates are saved is the caller's choice.
        self._checkpointer = self._context.enter_context(
            training.Checkpointer(
                str(path.absolute()),
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=training.preservation_policies.LatestN(keep),
            )
        )

    @property
    def latest(self) -> int | None:
        """The newest committed checkpoint, None without any."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def save(
        self, update: int, state: Any, replay: dict[str, np.ndarray], host: dict[str, Any]
    ) -> None:
        """Starts to write a checkpoint; the arrays may be donated once this returns."""
        self._checkpointer.save_checkpointables_async(
            update, {"state": state, "replay": replay, "host": host}
        )

    def restore(
        self, update: int, state: Any, replay: dict[str, np.ndarray]
    ) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
        """Reads a checkpoint onto the shapes, dtypes and shardings of `state` and `replay`.

        Raises:
          UsageError: if the checkpoint holds other shapes.
        """
        try:
            loaded = self._checkpointer.load_checkpointables(
                update, {"state": _abstract(state), "replay": replay, "host": None}
            )
        except ValueError as error:
            raise UsageError(f"checkpoint {update} does not fit this run: {error}") from error
        return loaded["state"], loaded["replay"], loaded["host"]

    def wait(self) -> None:
        """Returns when every started checkpoint is committed."""
        self._checkpointer.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for what is being written."""
        self._context.close()


def committed_steps(path: Path) -> list[int]:
    """The numbered checkpoints in a folder that are committed, the newest last."""
    if not path.is_dir():
        return []
    return sorted(
        int(child.name)
        for child in path.iterdir()
        if child.name.isdecimal() and (child / METADATA).is_file()
    )


def choose(path: Path, wanted: int | None) -> int:
    """The step of a committed checkpoint in a folder: the wanted one, or the newest for None.

    Raises:
      UsageError: there is none, or not that one.
    """
    steps = committed_steps(path)
    if not steps:
        raise UsageError(f"{path.parent} has no checkpoint yet")
    if wanted is None:
        return steps[-1]
    if wanted not in steps:
        present = ", ".join(map(str, steps))
        raise UsageError(f"--checkpoint={wanted}: the run has those of updates {present}")
    return wanted


def read_role(path: Path, keys: tuple[str, ...], mesh: Mesh) -> Role:
    """The variables of one network out of a checkpoint; nothing else is read.

    Args:
      path: the folder of the checkpoint itself.
      keys: where they are in the train state, such as ("critic", "trunk").
      mesh: what they are split over, whatever they were split over when they were saved.

    Raises:
      UsageError: the checkpoint cannot be read, or holds no such thing.
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


def read_state(path: Path, state: Any) -> Any:
    """The `state` of one checkpoint, without disturbing whoever writes beside it.

    Args:
      path: the folder of the checkpoint itself.
      state: arrays of the same shapes; values are not read.

    Raises:
      UsageError: if the checkpoint holds other shapes.
    """
    try:
        return ocp.load_checkpointables(path.absolute(), {"state": _abstract(state)})["state"]
    except ValueError as error:
        raise UsageError(f"checkpoint {path} does not fit its run: {error}") from error


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax logs, with its traceback, what a background save raises in the trainer anyway."""
    is_raised = record.exc_info or "raised an exception" in record.getMessage()
    return not ("orbax" in record.pathname and is_raised)


def _context() -> ocp.Context:
    """`host` as one JSON file; by default it would be stored leaf by leaf."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="host")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), tree
    )
