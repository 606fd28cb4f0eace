"""Final scores: what is run where, what a failure leaves, and what terminals and pages say."""

import contextlib
import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from env.base import UsageError
from env.execution.results import ExecutionResult
from env.tables.table import Dataset
from env.tasks.loading import IN_PYTHON
from etpo_jax.runs import final_scores, progress, report
from etpo_jax.runs.best import Best
from etpo_jax.runs.directory import PREPARATION, SCORES, RunDirectory
from etpo_jax.runs.final_scores import FinalScores, Holdout, Scored

BEST = Best(0.9, (0.8, 1.0), 6, "mine", 0, "model = 1", "def build_model(): ...\n")
SCORES_WITH_HOLDOUT = FinalScores(
    (
        Scored("best program", 0.9, (0.8, 1.0), "", Holdout(0.7, (0.625, 0.75))),
        Scored("logistic regression", 0.85, (0.85, 0.85), "", Holdout(0.8)),
        Scored("random forest", None, (), "TimeoutError: <10> s", Holdout(None, None, "no model")),
    ),
    "roc_auc",
    num_rows=80,
    num_holdout_rows=20,
    seconds=1.5,
)


def _dataset(num_rows: int, holdout: Dataset | None = None) -> Dataset:
    labels = np.arange(num_rows) % 2
    return Dataset("mine", "mine", np.zeros((num_rows, 1)), labels, ("a",), holdout=holdout)


@dataclasses.dataclass
class _Executor:
    """Answers with a reward that the caller gives, and remembers what it was asked."""

    reward: float
    asked: list[str] = dataclasses.field(default_factory=list)
    interval: tuple[float, float] | None = None
    isolation: str = "none"

    def run(self, bodies: Any) -> list[ExecutionResult]:
        self.asked += bodies
        return [
            ExecutionResult(-1.0, (), "ValueError: forest", 0.1)
            if "RandomForest" in body
            else ExecutionResult(self.reward, (self.reward,), "", 0.1, interval=self.interval)
            for body in bodies
        ]

    def close(self) -> None:
        pass


def test_baselines_run_on_the_splits_and_everything_on_the_holdout() -> None:
    executor, holdout = _Executor(0.5), _Executor(0.25, interval=(0.125, 0.375))
    found = final_scores.measure(
        _dataset(8, _dataset(3)),
        executor,
        BEST,
        metric="accuracy",
        open_holdout=lambda: contextlib.nullcontext(holdout),
    )
    assert holdout.asked == [BEST.action, *executor.asked]
    assert BEST.action not in executor.asked
    best, logistic, forest, _ = found.programs
    assert (best.name, best.reward, best.split_scores) == ("best program", 0.9, (0.8, 1.0))
    assert best.holdout == Holdout(0.25, (0.125, 0.375))
    assert (logistic.name, logistic.reward) == ("logistic regression", 0.5)
    assert (forest.reward, forest.error) == (None, "ValueError: forest")
    assert forest.holdout == Holdout(None, error="ValueError: forest")
    assert (found.num_rows, found.num_holdout_rows) == (8, 3)
    assert found.best is best
    assert found.baselines == found.programs[1:]


def test_a_holdout_without_a_score_costs_no_scores_of_the_splits() -> None:
    def refuse() -> Any:
        raise UsageError("the holdout lacks a class")

    found = final_scores.measure(
        _dataset(8, _dataset(1)), _Executor(0.5), BEST, metric="roc_auc", open_holdout=refuse
    )
    assert [program.reward for program in found.programs] == [0.9, 0.5, None, 0.5]
    assert {program.holdout for program in found.programs} == {
        Holdout(None, error="the holdout lacks a class")
    }
    assert found.lines()[1] == "best program           0.9000   the holdout lacks a class"


@pytest.mark.parametrize("best", [BEST, None])
def test_without_a_holdout_no_second_executor_is_made(best: Best | None) -> None:
    def refuse() -> Any:
        raise AssertionError("opened")

    found = final_scores.measure(
        _dataset(8), _Executor(0.5), best, metric="roc_auc", open_holdout=refuse
    )
    assert [program.holdout for program in found.programs] == [None] * len(found.programs)
    assert found.num_holdout_rows == 0
    assert (found.best is None) == (best is None)


def test_the_scale_of_a_number_is_explained(tmp_path: Path) -> None:
    _make_run(tmp_path, dataclasses.replace(SCORES_WITH_HOLDOUT, metric="rmse"))
    words = _words(report.write_report(tmp_path).read_text())
    assert "Scores are 1 - RMSE / (RMSE of the mean of the scored rows), and at least -1." in words


def test_scores_survive_the_way_through_a_file() -> None:
    stored = json.loads(json.dumps(SCORES_WITH_HOLDOUT.to_json()))
    assert FinalScores.from_json(stored) == SCORES_WITH_HOLDOUT


def test_lines_for_a_terminal() -> None:
    assert SCORES_WITH_HOLDOUT.lines() == [
        "                      roc_auc   holdout (95 % interval)",
        "best program           0.9000   0.7000 (0.6250 to 0.7500)",
        "logistic regression    0.8500   0.8000",
        "random forest          failed   no model",
    ]


def _make_run(path: Path, scores: FinalScores | None) -> None:
    config = {"algorithm": "etpo", "dataset": "mine", "seed": 0, "num_env_steps": 8}
    with RunDirectory.open(path, config, may_differ=frozenset(), overwrite=False) as run:
        errors = ["", "ValueError: 3 < 4", "ValueError: 3 < 5", "TypeError: 'a'", "", ""]
        actions = ["model = 1", "x = 1\n    model = x.fit()", "short", "c", " model = 1", "model=2"]
        run.append_episodes(
            [
                {
                    "env_step": step,
                    "reward": -1.0 if error else 0.9 - step / 100,
                    "error": error,
                    "action": action,
                    "split_scores": [] if error else [0.8, 1.0],
                }
                for step, (error, action) in enumerate(zip(errors, actions, strict=True), 1)
            ]
        )
        run.append_metrics({"update": 1, "env_step": 8, "reward_mean": 0.1, "policy_loss": 0.5})
        run.write_best(BEST)
        worse = dataclasses.replace(BEST, reward=0.84, env_step=2, action="a = 1\n    model = a")
        run.write_top_programs([BEST, worse])
        if scores is not None:
            (path / SCORES).write_text(json.dumps(scores.to_json()))


def _words(page: str) -> str:
    page = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_page_and_summary_show_the_scores(tmp_path: Path) -> None:
    _make_run(tmp_path, SCORES_WITH_HOLDOUT)
    (tmp_path / PREPARATION).write_text("{}")
    words = _words(report.write_report(tmp_path).read_text())
    for part in (
        "Score on the holdout 0.7000 95 % interval 0.625 to 0.750, 20 rows that no reward saw",
        "Best baseline 0.8500 logistic regression",
        "found at environment step 6 of 8, 75% into the run",
        "best program 0.9000 0.7000 (0.6250 to 0.7500) 0.8000 1.0000",
        "random forest failed no model TimeoutError: <10> s",
        "best_code.py --predict NEW.csv --output=predictions.csv",
        "etpo export --run_dir=",
        "--num_env_steps=16",
    ):
        assert part in words
    summary = progress.summary(tmp_path)
    assert all(f"  {line}\n" in summary for line in SCORES_WITH_HOLDOUT.lines())


def test_a_run_without_scores_has_a_page_without_them(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    words = _words(report.write_report(tmp_path).read_text())
    # The page also shows the command that started the run, which may name this very test.
    for title in ("Scores beside baselines", "Best baseline", "Score on the holdout"):
        assert title not in words


@pytest.mark.parametrize(
    ("command", "start"),
    [
        ("etpo train --seed=1", "etpo train"),
        ("python -m etpo_jax.train", "python -m etpo_jax.train"),
    ],
)
def test_commands_begin_as_the_run_was_started(tmp_path: Path, command: str, start: str) -> None:
    _make_run(tmp_path, None)
    setup = json.loads((tmp_path / "versions.json").read_text()) | {"command": command}
    (tmp_path / "versions.json").write_text(json.dumps(setup))
    words = _words(report.write_report(tmp_path).read_text())
    assert f"{start} --flagfile={tmp_path}/flags.cfg --num_env_steps=16" in words
    assert f"{start} --flagfile={tmp_path}/flags.cfg --run_dir=NEW_FOLDER" in words


def test_no_command_makes_a_task_again_that_python_made(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["task"] = f"mine.Task{IN_PYTHON}"
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = _words(report.write_report(tmp_path).read_text())
    assert "etpo export --run_dir=" in words
    for other in ("etpo train", "etpo evaluate", "best_code.py"):
        assert other not in words


def test_the_page_lists_the_best_programs_and_counts_equal_errors_together(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    page = report.write_report(tmp_path).read_text()
    words = _words(page)
    assert "The 2 best programs" in words
    assert "1 0.9000 6 0.8000 1.0000 def build_model(): ..." in words
    assert "2 0.8400 2 0.8000 1.0000 a = 1 model = a" in words
    assert "a = 1\nmodel = a" in page
    assert "3 of 6 programs failed" in words
    # The shortest of both programs stands for them.
    assert "2 33.3% ValueError: 3 < 5 At environment step 3: short" in words
    assert "1 16.7% TypeError: 'a' At environment step 4: c" in words


def _preparation(num_columns: int) -> dict[str, Any]:
    profile = {"missing": 7, "distinct": 3, "examples": ["<b>", "x"], "warnings": ["free text"]}
    column = {"name": "remark", "as": "text", "profile": profile}
    return {
        "file": {"path": "my.csv", "kind": "csv", "encoding": "cp1252", "separator": ";"},
        "target": "churn",
        "profile": {"rows": 10, "visible": 8, "holdout": 2, "classes": {"no": 5, "yes": 3}},
        "columns": [{**column, "name": f"c{i}"} for i in range(num_columns)],
        "form": "frame",
        "notes": ["column 'id' numbers the rows: dropped"],
    }


def test_the_page_shows_how_a_table_was_read(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    (tmp_path / PREPARATION).write_text(json.dumps(_preparation(2)))
    page = report.write_report(tmp_path).read_text()
    words = _words(page)
    for part in (
        "my.csv: csv, separator ';', cp1252; 10 rows, 2 columns beside the target",
        "target churn: 2 classes: no (5), yes (3)",
        "rows: 8 for rewards, 2 held out",
        "Programs get its columns as a pandas DataFrame.",
        "column 'id' numbers the rows: dropped",
        "c1 text 7 3 <b> | x free text",
    ):
        assert part in words
    assert "<summary>2 columns" not in page


def test_a_wide_table_is_folded_and_cut(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    (tmp_path / PREPARATION).write_text(json.dumps(_preparation(300)))
    page = report.write_report(tmp_path).read_text()
    assert "<summary>300 columns</summary>" in page
    assert "and 100 more in preparation.json" in _words(page)
    assert page.count("free text") == 200


def test_a_table_of_the_paper_needs_no_profile(tmp_path: Path) -> None:
    _make_run(tmp_path, None)
    preparation = _preparation(2) | {"columns": [{"name": "a", "as": "number"}]}
    (tmp_path / PREPARATION).write_text(json.dumps(preparation))
    assert "The table" not in _words(report.write_report(tmp_path).read_text())


def test_going_on_from_a_checkpoint_forgets_the_scores(tmp_path: Path) -> None:
    _make_run(tmp_path, SCORES_WITH_HOLDOUT)
    config = {"algorithm": "etpo", "dataset": "mine", "seed": 0, "num_env_steps": 8}
    with RunDirectory.open(tmp_path, config, may_differ=frozenset(), overwrite=False) as run:
        run.cut_back(update=1, env_step=6, best=BEST)
    assert not (tmp_path / SCORES).exists()
