"""What a run about a table says and writes at its start, and scores at its end."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from env.base import Task
from env.execution import metrics
from env.tables.listing import profile_lines
from env.tasks.code_task import CodeTask
from etpo_jax import build
from etpo_jax.config import Config
from etpo_jax.runs import directory, files, final_scores
from etpo_jax.runs.best import Best, write_preparation
from etpo_jax.runs.directory import RunDirectory

_SHOWN_COLUMNS = 20
"""Number of columns of a user's table that a run lists at its start."""


def introduction(task: Task) -> str:
    """Returns the profile of a user's table, a line about the paper's, "" for other tasks."""
    if not isinstance(task, CodeTask):
        return ""
    dataset = task.dataset
    if profile := profile_lines(dataset.preparation, max_columns=_SHOWN_COLUMNS):
        return "\n".join(profile)
    num_rows, num_features = dataset.features.shape
    counts = np.unique(dataset.labels, return_counts=True)[1].tolist()
    target = f"{len(counts)} classes of {', '.join(map(str, counts))} rows"
    if dataset.is_regression:
        target = "a number to predict"
    return f"{dataset.name}, {num_rows} rows, {num_features} features, {target}"


def store_preparation(run: RunDirectory, config: Config, task: Task) -> None:
    """Writes `preparation.json`; nothing for a task about no table.

    Raises:
      UsageError: the run began with other rows.
    """
    if isinstance(task, CodeTask) and task.dataset.preparation:
        run.write_preparation(_preparation(config, task))


def _preparation(config: Config, task: CodeTask) -> dict[str, Any]:
    table, metric = task.dataset, config.task.metric
    if config.task.task:  # made by a factory: the settings do not say how it scores
        metric = metrics.default(is_regression=table.is_regression).name
    return {"metric": metric, "checksum": table.checksum, **table.preparation}


def write_scores(path: Path, config: Config, task: Task, best: Best | None) -> None:
    """Scores the best program of a run and the baselines; writes nothing for a task of no table.

    Args:
      path: the run directory, which gets `scores.json`.
      config: settings of the run.
      task: the open task of the run.
      best: the best program of the run.

    Raises:
      UsageError: the run was made with other rows.
      Exception: whatever an executor raises that cannot run any program.
    """
    if not isinstance(task, CodeTask):
        return
    if (path / directory.PREPARATION).exists():
        write_preparation(path / directory.PREPARATION, _preparation(config, task))
    dataset, metric = task.dataset, config.task.metric
    if config.task.task:
        # The settings describe no executor for the holdout of a task that a factory made.
        dataset, metric = dataclasses.replace(dataset, holdout=None), "reward"
    scores = final_scores.measure(
        dataset,
        task.executor,
        best,
        metric=metric,
        open_holdout=lambda: build.open_holdout(config, dataset),
    )
    files.write_json(path / directory.SCORES, scores.to_json())
