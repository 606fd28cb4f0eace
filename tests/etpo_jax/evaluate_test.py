"""Settings of an evaluation: those of the run, and flags over them."""

import json
import statistics
import subprocess
import sys

import pytest

from etpo_jax.config import Config
from etpo_jax.reproduction import final_policy
from etpo_jax.runs.directory import RunDirectory
from etpo_jax.trainer import Trainer

PROGRAM = (
    "from env import command_line\n"
    "from etpo_jax import evaluate\n"
    "command_line.run(lambda: print(evaluate._resolve()[0].task.title))"
)


@pytest.fixture
def title(tmp_path):
    """Gives the title of the task that is evaluated, for a run of a task and further flags."""

    def title(*arguments, **settings):
        values = Config.from_dict({"model": "tiny", **settings}).to_dict()
        with RunDirectory.open(
            tmp_path / "run", values, may_differ=frozenset(values), overwrite=False
        ):
            pass  # made, and left for others
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, f"--run_dir={tmp_path / 'run'}", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return title


@pytest.mark.parametrize("task", ["package.module:factory", "Mine (given in Python)"])
def test_a_data_set_on_the_command_line_takes_the_place_of_the_task_of_the_run(title, task):
    assert title(task=task) == task
    assert title("--dataset=tic_tac_toe", task=task) == "tic_tac_toe"
    assert title("--dataset=tic_tac_toe", "--task=other.module:make", task=task) == (
        "other.module:make"
    )


def test_the_data_set_of_the_run_is_the_default(title):
    assert title(dataset="toy") == "toy"


def test_fresh_samples_of_a_run_are_held_against_the_run(tmp_path):
    run = tmp_path / "run"
    settings = {"dataset": "toy", "num_envs": 4, "num_env_steps": 8, "max_new_tokens": 8}
    Trainer(run_dir=run, algorithm="reflection", quiet=True, **settings).train()
    command = [sys.executable, "-m", "etpo_jax.evaluate", f"--run_dir={run}", "--json"]
    done = subprocess.run(
        [*command, "--num_samples=12", "--num_envs=4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    found = answer["fresh_samples"]
    assert found["num_samples"] == answer["programs"] == 12
    assert found["reward"] == pytest.approx(answer["reward_mean"])
    assert found["distinct"] == answer["distinct_programs"]
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)  # nothing was trained
    assert found["kl_full"] > 0
    shown = final_policy.render(found)
    assert f"{found['kl_full']:.3f} ± {found['kl_full_se']:.3f}" in shown


def test_the_standard_error_counts_episodes_and_not_actions():
    def row(episode, t, reward):
        return {"episode": episode, "t": t, "reward": reward, "error": "", "action": "pass"}

    alone = [row(episode, 0, reward) for episode, reward in enumerate((0.2, 0.5, 0.9))]
    doubled = [row(r["episode"], t, r["reward"]) for r in alone for t in (0, 1)]
    program = (
        "import json, sys\n"
        "from etpo_jax import evaluate\n"
        "found = [evaluate.summarize(rows) for rows in json.load(sys.stdin)]\n"
        "shown = [evaluate.render(statistics) for statistics in found]\n"
        "print(json.dumps([[each['reward_standard_error'] for each in found], shown]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([alone, doubled, alone[:1]]),
        capture_output=True,
        text=True,
        check=True,
    )
    errors, shown = json.loads(done.stdout)
    expected = statistics.stdev((0.2, 0.5, 0.9)) / 3**0.5
    assert errors == [pytest.approx(expected), pytest.approx(expected), None]
    assert f"mean reward  {expected:.3f}" in shown[0]
    assert "mean reward  -" in shown[2]
