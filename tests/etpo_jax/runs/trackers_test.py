"""Trackers get what they lack of a run, and what they raise ends nothing but themselves."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import logging

from env.base import UsageError
from etpo_jax.runs import directory, trackers
from etpo_jax.runs.final_scores import FinalScores, Holdout, Scored
from etpo_jax.runs.tracked_run import SAMPLE_COLUMNS
from tests.etpo_jax.runs import tracked_runs
from tests.etpo_jax.runs.tensorboard_test import scalars, texts


class Recorder:
    """A tracker that keeps what it gets, and raises in the method that `fails` names."""

    def __init__(self, fails: str = "", next_update: int = 1) -> None:
        self.fails = fails
        self.next_update = next_update
        self.calls: list[tuple[str, Any]] = []
        self._note("start", None)

    def _note(self, method: str, value: Any) -> None:
        self.calls.append((method, value))
        if method == self.fails:
            raise ConnectionError("no network\nat all")

    def write(self, row: Any, samples: Any) -> None:
        self._note("write", (row["update"], len(samples)))

    def write_best(self, best: Any, update: int) -> None:
        self._note("best", (best.code, update))

    def write_scores(self, numbers: Any, update: int) -> None:
        self._note("scores", (dict(numbers), update))

    def close(self, *, is_finished: bool) -> None:
        self._note("close", is_finished)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Shows updates of a run of which two are done in a recorder that stands for W&B."""

    def begin(*updates: int, **options: Any) -> Recorder:
        made: list[Recorder] = []

        class Made(Recorder):
            def __init__(self, *arguments: Any) -> None:
                made.append(self)
                super().__init__(**options)

        monkeypatch.setattr(trackers, "WandbRun", Made)
        run = tracked_runs.begin(tmp_path, 2)
        with trackers.Trackers(["wandb"], run, lambda line: None) as shown:
            for update in updates:
                tracked_runs.append(run.path, update)
                shown.write(tracked_runs.metrics(update), tracked_runs.episodes(update))
        return made[0]

    return begin


def test_a_tracker_gets_what_it_lacks_and_each_update_once(show: Callable[..., Recorder]) -> None:
    calls = show(3, 4).calls
    written = [value for name, value in calls if name == "write"]
    assert written == [(1, 2), (2, 2), (3, 2), (4, 2)]
    best = [value for name, value in calls if name == "best"]
    assert best == [(f"# update {update}\n", update) for update in (2, 3, 4)]
    assert calls[-1] == ("close", True)


def test_a_run_that_was_killed_after_its_last_update_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recorder] = []
    monkeypatch.setattr(trackers, "MlflowRun", lambda *a: made.append(Recorder()) or made[-1])
    run = tracked_runs.begin(tmp_path, 4)
    scores = FinalScores((Scored("random forest", 0.75, (0.7, 0.8)),), "roc_auc", 10, 2, 0.1)
    (run.path / "scores.json").write_text(json.dumps(scores.to_json()))
    with trackers.Trackers(["mlflow"], run, lambda line: None) as shown:
        shown.write_scores()
    assert made[0].calls[-2:] == [("scores", ({"final/random_forest": 0.75}, 4)), ("close", True)]


def test_a_tracker_that_has_the_past_gets_the_rest(show: Callable[..., Recorder]) -> None:
    calls = show(3, next_update=3).calls
    assert [value for name, value in calls if name == "write"] == [(3, 2)]
    assert calls[-1] == ("close", False)


@pytest.mark.parametrize("method", ["start", "write", "best", "close"])
def test_a_tracker_that_fails_warns_once(
    show: Callable[..., Recorder], warnings: list[str], method: str
) -> None:
    tracker = show(3, 4, fails=method)
    line = "--trackers=wandb: the run goes on without it: ConnectionError: no network at all"
    assert warnings == [line]
    assert [name for name, _ in tracker.calls].count(method) == 1


def test_a_service_that_hangs_or_lags_does_not_hold_the_run(
    show: Callable[..., Recorder], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(Recorder, "close", lambda self, *, is_finished: hanging.wait())
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.2)
    show(3, 4)
    assert len(warnings) == 1
    assert "it has not taken everything within 0 s" in warnings.pop()
    monkeypatch.setattr(Recorder, "write", lambda self, row, samples: hanging.wait())
    monkeypatch.setattr(trackers, "_MAX_WAITING", 2)
    show(*range(3, 9))
    hanging.set()
    (line,) = warnings
    assert line.endswith("the run goes on without it: it is more than 2 calls behind")


def test_samples_are_shown_about_twenty_times_in_a_run(tmp_path: Path) -> None:
    run = tracked_runs.begin(tmp_path, num_env_steps=2000)
    shown = [update for update in range(1, 1001) if run.shows_samples(tracked_runs.metrics(update))]
    assert shown == [1, *range(50, 1001, 50)]


def test_a_resumed_run_has_the_events_of_its_rows_and_no_others(tmp_path: Path) -> None:
    run = tracked_runs.begin(tmp_path)
    with trackers.Trackers(["tensorboard"], run, lambda line: None) as shown:
        for update in (1, 2, 3):
            shown.write(tracked_runs.metrics(update), tracked_runs.episodes(update))
    folder = tmp_path / directory.TENSORBOARD
    (folder / "notes.txt").write_text("")
    (old,) = folder.glob("events*")
    with open(old, "ab") as file:
        file.write(b"torn")
    run = tracked_runs.begin(tmp_path, 2)
    with trackers.Trackers(["tensorboard"], run, lambda line: None) as shown:
        shown.write(tracked_runs.metrics(3), tracked_runs.episodes(3))
    (folder / "notes.txt").unlink()
    means = [(step, value) for step, name, value in scalars(tmp_path) if name == "reward_mean"]
    assert means == [(1, 0.125), (2, 0.25), (3, 0.375)]
    found = texts(tmp_path)
    assert found[2, "best program"].endswith("    # update 2")
    assert {step for step, name in found if name == "samples"} == {1, 2, 3}
    assert found[1, "samples"].startswith("|".join(SAMPLE_COLUMNS))
    assert "\\ud800" in found[1, "samples"]


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run trains without tensorboardX; a service that was asked for by name is missed at once."""
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    lines: list[str] = []
    trackers.check(["tensorboard"])
    with trackers.Trackers(["tensorboard"], tracked_runs.begin(tmp_path), lines.append) as shown:
        shown.write(tracked_runs.metrics(1), tracked_runs.episodes(1))
    assert lines == ["tensorboard: no events are written, for tensorboardX is not installed"]
    assert not (tmp_path / directory.TENSORBOARD).exists()
    with pytest.raises(UsageError, match=r"--trackers=wandb: .* pip install 'etpo_jax\[wandb\]'"):
        trackers.check(["tensorboard", "wandb"])


def test_final_scores_are_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []

    def make(*arguments: Any) -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(trackers, "WandbRun", make)
    run = tracked_runs.begin(tmp_path, 2)
    scored = Scored("random forest", 0.75, (0.7, 0.8), holdout=Holdout(0.5))
    scores = FinalScores((scored,), "roc_auc", 10, 2, 0.1)
    with trackers.Trackers(["wandb", "tensorboard"], run, lambda line: None) as shown:
        shown.write_scores()  # before any update, and before there are scores
        tracked_runs.append(run.path, 3)
        shown.write(tracked_runs.metrics(3), tracked_runs.episodes(3))
        (run.path / "scores.json").write_text(json.dumps(scores.to_json()))
        shown.write_scores()
    numbers = {"final/random_forest": 0.75, "final_holdout/random_forest": 0.5}
    assert [value for name, value in made[0].calls if name == "scores"] == [(numbers, 3)]
    assert (3, "final/random_forest", 0.75) in scalars(run.path)
