"""W&B offline and MLflow with a local store; `make trackers` installs both."""

import json
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import logging

from etpo_jax.runs import trackers
from etpo_jax.runs.tracked_run import TrackedRun
from tests.etpo_jax.runs import tracked_runs

# These packages warn about what they themselves will change.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Services are offline, and what they are given up for is kept."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    found: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


def _show(name: str, run: TrackedRun, *updates: int) -> list[str]:
    lines: list[str] = []
    with trackers.Trackers([name], run, lines.append) as shown:
        for update in updates:
            tracked_runs.append(run.path, update)
            shown.write(tracked_runs.metrics(update), tracked_runs.episodes(update))
    return lines


def _records(path: Path) -> Iterator[Any]:
    """Records of a W&B file: blocks of 32 KiB that hold pieces with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def _finished(path: Path) -> list[Any]:
    """The records up to the last one, which W&B's own process writes a moment after the run."""
    deadline = time.monotonic() + 30
    while True:
        records = list(_records(path))
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_wandb_offline(tmp_path: Path, warnings: list[str]) -> None:
    pytest.importorskip("wandb")
    (line,) = _show("wandb", tracked_runs.begin(tmp_path), 1, 2)
    assert line.startswith("wandb: offline; `wandb sync ")
    time.sleep(1.1)  # W&B names the folder of a process by the second
    _show("wandb", tracked_runs.begin(tmp_path / ".", 2, num_env_steps=6), 3)
    assert not warnings
    logs = sorted((tmp_path / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    found = [_finished(path) for path in logs]
    ids = {record.run.run_id for records in found for record in records if record.HasField("run")}
    assert ids == {(tmp_path / "trackers" / "wandb.id").read_text().strip()}
    config = {
        item.key: json.loads(item.value_json)
        for record in found[0]
        for item in record.run.config.update
    }
    assert (config["num_envs"], config["versions"]["git_commit"]) == (2, "c0ffee")
    history = [
        {item.key or item.nested_key[-1]: item.value_json for item in record.history.item}
        for records in found
        for record in records
        if record.HasField("history")
    ]
    steps = [(row["_step"], row["update"], row["reward_mean"]) for row in history]
    assert steps == [("1", "1", "0.125"), ("2", "2", "0.25"), ("3", "3", "0.375")]
    tables = sorted((tmp_path / "trackers" / "wandb").glob("offline*/files/media/table/*.json"))
    assert len(tables) == 3
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["env_step", "reward", "error", "action", "prompt"]
    assert table["data"][1][:4] == [2, 0.25, "", "return 2"]
    best = [
        record.artifact
        for records in found
        for record in records
        if record.artifact.type == "program"
    ]
    assert [json.loads(artifact.metadata)["env_step"] for artifact in best] == [2, 4, 4, 6]
    assert [entry.path for entry in best[0].manifest.contents] == ["best_code.py"]


def test_mlflow_with_a_store_in_the_run_directory(tmp_path: Path, warnings: list[str]) -> None:
    pytest.importorskip("mlflow")
    (line,) = _show("mlflow", tracked_runs.begin(tmp_path), 1, 2)
    run_id = (tmp_path / "trackers" / "mlflow.id").read_text().strip()
    assert line == f"mlflow: run {run_id} in sqlite:///{tmp_path}/trackers/mlflow.db"
    # Update 3 was cut back with the run: the process that resumes writes it again, but not twice.
    _show("mlflow", tracked_runs.begin(tmp_path / ".", 2, num_env_steps=6), 3)
    _show("mlflow", tracked_runs.begin(tmp_path / ".", 2, num_env_steps=6), 3)
    assert not warnings
    with sqlite3.connect(tmp_path / "trackers" / "mlflow.db") as store:
        metrics = store.execute("select step, value from metrics where key = 'reward_mean'")
        assert sorted(metrics) == [(1, 0.125), (2, 0.25), (3, 0.375)]
        parameters = dict(store.execute("select key, value from params"))
        assert (parameters["num_envs"], parameters["num_env_steps"]) == ("2", "8")
        tags = dict(store.execute("select key, value from tags"))
        assert tags["mlflow.source.git.commit"] == "c0ffee"
        assert tags["resumed.num_env_steps"] == "6"
        assert list(store.execute("select status from runs")) == [("FINISHED",)]
    folder = tmp_path / "trackers" / "mlflow_artifacts" / run_id / "artifacts"
    assert (folder / "best_code.py").read_text() == "# update 3\n"
    assert json.loads((folder / "best.json").read_text())["update"] == 3
    table = json.loads((folder / "samples.json").read_text())
    assert table["columns"][:3] == ["update", "env_step", "reward"]
    assert [row[:3] for row in table["data"]][:2] == [[1, 1, -1.0], [1, 2, 0.25]]


def test_a_service_that_cannot_be_reached_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert _show("mlflow", tracked_runs.begin(tmp_path), 1, 2) == []
    (line,) = warnings
    assert line.startswith("--trackers=mlflow: the run goes on without it: ")
