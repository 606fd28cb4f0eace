"""A run in MLflow: in the store of MLFLOW_TRACKING_URI, or in one inside the run directory."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etpo_jax.runs import directory
from etpo_jax.runs.tracked_run import SAMPLE_COLUMNS, BestProgram, TrackedRun, numbers_of

_PARAMETERS_AT_ONCE = 100
_MAX_LENGTH = 500
"""Characters of a parameter's value that every version of MLflow's server takes."""


class MlflowRun:
    """A run of the experiment `etpo_jax`, or of that in MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: TrackedRun, say: Callable[[str], None]) -> None:
        """Starts the run, or goes on under its id; `say` gets the line that names its place.

        Raises:
          Exception: whatever MLflow raises.
        """
        # A bar of MLflow's own for each table would tear that of the run.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._entities = mlflow.entities
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place = None
        if not uri:
            uri = f"sqlite:///{(run.folder / 'mlflow.db').absolute()}"
            place = (run.folder / "mlflow_artifacts").absolute().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        known = run.stored_id("mlflow")
        if known is None:
            experiment = self._experiment(place)
            found = self._client.create_run(experiment, run_name=run.path.name)
            run.store_id("mlflow", found.info.run_id)
        else:
            found = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        self._id: str = found.info.run_id
        self.next_update = int(found.data.metrics.get("update", 0)) + 1
        self._log_settings(run, found.data.params)
        say(f"mlflow: run {self._id} in {uri}")

    def write(self, row: Mapping[str, Any], samples: Sequence[Sequence[Any]]) -> None:
        """Logs the numbers of a row at step `update`, and adds samples to the table of the run."""
        now, step = int(time.time() * 1000), int(row["update"])
        numbers = numbers_of(row)
        # Last, as it tells the next process what MLflow has.
        numbers["update"] = numbers.pop("update")
        self._client.log_batch(
            self._id,
            metrics=[
                self._entities.Metric(_name(name), number, now, step)
                for name, number in numbers.items()
            ],
        )
        if samples:
            columns = dict(zip(SAMPLE_COLUMNS, zip(*samples, strict=True), strict=True))
            data = {"update": [step] * len(samples)} | {k: list(v) for k, v in columns.items()}
            self._client.log_table(self._id, data, "samples.json")

    def write_best(self, best: BestProgram, update: int) -> None:
        """Replaces the artifacts `best_code.py` and `best.json`."""
        self._client.log_text(self._id, best.code, directory.BEST_CODE)
        self._client.log_dict(self._id, {**best.facts, "update": update}, directory.BEST)

    def write_scores(self, numbers: Mapping[str, float], update: int) -> None:
        """Logs the final scores as metrics at the last update."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                self._entities.Metric(_name(name), number, now, update)
                for name, number in numbers.items()
            ],
        )

    def close(self, *, is_finished: bool) -> None:
        """Marks the run as finished, or as killed where it may be resumed."""
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")

    def _experiment(self, place: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "etpo_jax")
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        return self._client.create_experiment(name, artifact_location=place)

    def _log_settings(self, run: TrackedRun, logged: Mapping[str, str]) -> None:
        """Settings become parameters, and versions tags.

        MLflow never changes a parameter: a setting that has another value since a resumption is
        the tag `resumed.NAME`.
        """
        texts = {_name(name): str(value)[:_MAX_LENGTH] for name, value in run.settings.items()}
        new = [(name, text) for name, text in texts.items() if name not in logged]
        for start in range(0, len(new), _PARAMETERS_AT_ONCE):
            batch = new[start : start + _PARAMETERS_AT_ONCE]
            self._client.log_batch(
                self._id, params=[self._entities.Param(name, text) for name, text in batch]
            )
        tags = dict(_tags(run))
        tags |= {f"resumed.{k}": v for k, v in texts.items() if logged.get(k, v) != v}
        self._client.log_batch(
            self._id, tags=[self._entities.RunTag(name, text) for name, text in tags.items()]
        )


def _tags(run: TrackedRun) -> Iterator[tuple[str, str]]:
    yield "mlflow.note.content", run.title
    if commit := run.facts.get("git_commit"):
        yield "mlflow.source.git.commit", commit
    for name, value in run.facts.items():
        yield _name(name), str(value)[:_MAX_LENGTH]


def _name(name: str) -> str:
    """A name in the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)
