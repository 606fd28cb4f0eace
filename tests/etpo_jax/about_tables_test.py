"""What a run about a table stores at its start, and when it computes no scores."""

import numpy as np
import pytest

from env.base import UsageError
from env.execution.results import ExecutionResult
from env.tables.table import Dataset
from env.tasks.code_task import CodeTask
from etpo_jax import about_tables
from etpo_jax.config import Config
from etpo_jax.runs import files
from etpo_jax.runs.directory import PREPARATION, SCORES, RunDirectory


class _Executor:
    isolation = "none"

    def run(self, bodies):
        return [ExecutionResult(0.5, (0.5,), "", 0.0) for _ in bodies]

    def close(self):
        pass


def make_task(labels=(0, 1, 0, 1)):
    labels = np.array(labels)
    table = Dataset("mine", "Mine", np.zeros((4, 1)), labels, ("a",), preparation={"file": {}})
    return CodeTask(table, _Executor())


def open_run(path, config):
    return RunDirectory.open(path, config.to_dict(), may_differ=frozenset(), overwrite=False)


@pytest.mark.parametrize(
    ("task", "labels", "metric"),
    [
        ("", (0, 1, 0, 1), "accuracy"),
        # The settings do not say how a task of a factory scores.
        ("module:factory", (0, 1, 0, 1), "roc_auc"),
        ("module:factory", (0.5, 1.0, 2.0, 3.0), "r2"),
    ],
)
def test_the_preparation_names_the_metric(tmp_path, task, labels, metric):
    config = Config.from_dict({"task": task, "metric": "accuracy"})
    with open_run(tmp_path, config) as run:
        about_tables.store_preparation(run, config, make_task(labels))
    assert files.read_json(tmp_path / PREPARATION)["metric"] == metric


def test_no_scores_are_computed_on_other_rows_than_those_of_the_run(tmp_path):
    config = Config.from_dict({"metric": "accuracy"})
    with open_run(tmp_path, config) as run:
        about_tables.store_preparation(run, config, make_task())
    about_tables.write_scores(tmp_path, config, make_task(), None)
    assert (tmp_path / SCORES).exists()
    with pytest.raises(UsageError, match="has changed since the run"):
        about_tables.write_scores(tmp_path, config, make_task((1, 0, 1, 0)), None)
