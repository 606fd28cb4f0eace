import csv
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import study


def test_the_weighted_programs_are_the_exponential_tilt():
    # Three kinds of program, as often as rho writes them; KL and reward in closed form.
    rewards = [-1.0] * 50 + [0.5] * 40 + [0.9] * 10
    rho, kinds, beta = np.array([0.5, 0.4, 0.1]), np.array([-1.0, 0.5, 0.9]), 0.2
    best = rho * np.exp(kinds / beta)
    best /= best.sum()
    found = study.tilted(rewards, beta)
    assert found.reward == pytest.approx(best @ kinds)
    assert found.kl == pytest.approx(best @ np.log(best / rho))
    assert 10 < found.effective < 50


def test_a_large_beta_is_the_reference_and_a_small_one_the_best_program():
    rewards = [-1.0, 0.2, 0.7, 0.8]
    assert study.tilted(rewards, 1e6).kl == pytest.approx(0.0, abs=1e-6)
    reward, kl, effective = study.tilted(rewards, 1e-3)
    assert (reward, kl, effective) == pytest.approx((0.8, np.log(4), 1.0))


def test_a_study_runs_every_cell_once_and_writes_one_row_for_each(tmp_path):
    command = [
        *(sys.executable, "-m", "benchmarks.study", f"--output={tmp_path}"),
        *("--setting=cool: --temperature=0.7 --algorithm=reflection", "--datasets=balance_scale"),
        *("--vary=algorithm=reflection", "--seeds=0", "--num_env_steps=16", "--soft_optimum=0.1"),
    ]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)
    )
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stdout == again.stdout
    assert "2 of 2 cells" in again.stderr.splitlines()[0]
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["cool", "algorithm=reflection"]
    assert all(-1 <= float(row["reward_fifth_5"]) <= float(row["reward_best"]) for row in rows)
    assert "| balance_scale | 32 |" in first.stdout


def test_what_is_no_setting_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.study", "--setting=--beta=0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --setting=--beta=0.1: must be 'NAME: FLAGS'\n"
