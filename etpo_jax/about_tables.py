"""What a run about a table says at its start, and scores at its end."""

import dataclasses
from pathlib import Path

from env.base import Task
from env.tables.listing import profile_lines
from env.tasks.code_task import CodeTask
from etpo_jax import build
from etpo_jax.config import Config
from etpo_jax.runs import directory, files, final_scores
from etpo_jax.runs.best import Best

_SHOWN_COLUMNS = 20
"""Number of columns of a user's table that a run lists at its start."""


def introduction(task: Task) -> str:
    """Returns the profile of a user's table, a line about another table, "" for other tasks."""
    if not isinstance(task, CodeTask):
        return ""
    dataset = task.dataset
    if profile := profile_lines(dataset.preparation, max_columns=_SHOWN_COLUMNS):
        return "\n".join(profile) + "\n"
    num_rows, num_features = dataset.features.shape
    return f"table: {dataset.name}, {num_rows} rows, {num_features} features"


def write_scores(
    path: Path, config: Config, task: Task, best: Best | None, is_of_settings: bool
) -> None:
    """Scores the best program of a run and the baselines; writes nothing for a task of no table.

    Args:
      path: the run directory, which gets `scores.json`.
      config: settings of the run.
      task: the open task of the run.
      best: the best program of the run.
      is_of_settings: whether the settings describe the task. Those of a task that was made in
        Python do not, so that it is not scored on a holdout.

    Raises: whatever an executor raises that cannot run any program.
    """
    if not isinstance(task, CodeTask):
        return
    dataset, metric = task.dataset, config.task.metric
    if not is_of_settings:
        dataset, metric = dataclasses.replace(dataset, holdout=None), "reward"
    scores = final_scores.measure(
        dataset,
        task.executor,
        best,
        metric=metric,
        open_holdout=lambda: build.open_holdout(config, dataset),
    )
    files.write_json(path / directory.SCORES, scores.to_json())
