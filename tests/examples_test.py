"""Each example trains for a few steps, and leaves what it promises."""

import csv
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest

import etpo_jax
from env.datasets import load_dataset

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "compiled"
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
NUM_ENV_STEPS = 32
"""Two updates of an example."""


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Compiled programs outlive the session, so that running the tests again is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
        yield


def module_of(name):
    return importlib.import_module(f"examples.{name}")


def train(name, tmp_path, num_env_steps=NUM_ENV_STEPS):
    """Runs an example in this process and compares its result with the log."""
    result = module_of(name).main(run_dir=str(tmp_path / name), num_env_steps=num_env_steps)
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert result.metrics == [json.loads(line) for line in lines]
    assert result.metrics[-1]["env_step"] == num_env_steps
    assert (result.run_dir / "report.html").is_file()
    return result


def episodes(result):
    lines = (result.run_dir / "episodes.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "etpo_jax.train", *words],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(CACHE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_own_reward_is_what_the_log_holds_and_the_run_goes_on(tmp_path, capsys):
    result = train("own_reward", tmp_path, num_env_steps=16)
    reward = module_of("own_reward").reward
    for row in episodes(result):
        assert row["reward"] == reward(row["prompt"], row["action"])
    output = capsys.readouterr().out
    assert result.best.action in output
    assert "A sample of the policy" in output
    resumed = train("own_reward", tmp_path)
    assert resumed.metrics[:1] == result.metrics
    assert "Resuming" in capsys.readouterr().out


def test_a_task_of_several_steps_gives_another_try_after_an_error(tmp_path, capsys):
    result = train("multi_turn_task", tmp_path)
    rows = episodes(result)
    by_episode = {}
    for row in rows:
        by_episode.setdefault(row["episode"], []).append(row)
    assert any(len(steps) > 1 for steps in by_episode.values())
    for steps in by_episode.values():
        assert [row["t"] for row in steps] == list(range(len(steps)))
        for before, after in itertools.pairwise(steps):
            assert (before["reward"], bool(before["error"])) == (0.0, True)
            assert before["error"] in after["prompt"]
    assert {row["dataset"] for row in rows} == {"tries"}
    assert "Asked for GaussianNB, the policy writes" in capsys.readouterr().out


def test_a_new_algorithm_logs_its_own_metric_and_moves_the_policy(tmp_path, capsys):
    result = train("new_algorithm", tmp_path)
    assert all(row["advantage_size"] > 0 for row in result.metrics)
    assert all(row["policy_grad_norm"] > 0 for row in result.metrics)
    assert [row["gradient_steps"] for row in result.metrics] == [1, 2]
    assert result.metrics[1]["kl_to_reference"] > 1e-4
    assert "advantages" in capsys.readouterr().out
    settings = json.loads((result.run_dir / "config.json").read_text())
    assert (settings["algorithm"], settings["kl_weight"]) == (
        "examples.new_algorithm:Reinforce",
        0.01,
    )
    with pytest.raises(
        ValueError,
        match=r"--trust_region: --algorithm=examples.new_algorithm:Reinforce does not read it",
    ):
        etpo_jax.Trainer(algorithm="reinforce", trust_region=0.3)


def test_microbatches_give_the_new_algorithm_the_same_step(tmp_path):
    example = module_of("new_algorithm")
    losses = []
    for size in (0, 8):
        trainer = etpo_jax.Trainer(
            algorithm="reinforce",
            prompts=[example.PROMPT],
            reward=example.reward,
            num_env_steps=16,
            microbatch_size=size,
            run_dir=tmp_path / str(size),
            quiet=True,
        )
        (row,) = trainer.train().metrics
        losses.append([row[name] for name in ("policy_loss", "advantage_size", "policy_grad_norm")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_own_table_gives_a_program_that_runs(tmp_path, capsys):
    result = train("own_table", tmp_path)
    with (tmp_path / "own_table.csv").open() as file:
        header, *rows = csv.reader(file)
    assert (header[-1], len(rows)) == ("repaid", 300)
    assert any("" in row for row in rows)
    assert 0.5 < result.best.reward <= 1.0
    assert len(result.best.split_scores) == 5
    output = capsys.readouterr().out
    assert result.best.action in output
    assert f"best reward, {result.best.reward:.3f}" in output
    assert f"{result.run_dir}/best_code.py --predict" in output


def test_task_and_algorithm_of_the_examples_work_on_the_command_line(tmp_path):
    done = run(
        "--task=examples.multi_turn_task:make_task",
        "--algorithm=examples.new_algorithm:Reinforce",
        "--kl_weight=0.5",
        "--num_env_steps=16",
        f"--run_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "advantage_size" in json.loads(row)
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["kl_weight"] == 0.5


def test_five_tables_are_files_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module_of("five_tables").main()
    tables = {"wine.csv": 3, "cancer.parquet": 2, "iris.csv": 3, "visits.xlsx": 2}
    for name, num_classes in tables.items():
        target = "bought" if name == "visits.xlsx" else "target"
        table = load_dataset(name, target=target)
        assert (table.num_classes, table.holdout.num_classes) == (num_classes, num_classes)
    assert load_dataset("diabetes.csv.gz", target="target", regression=True).is_regression
    assert len(list(tmp_path.glob("new_*"))) == 5


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_listed_and_says_how_it_is_run(name):
    command = f"python examples/{name}.py"
    assert command in (ROOT / "examples" / "README.md").read_text()
    assert command in module_of(name).__doc__
