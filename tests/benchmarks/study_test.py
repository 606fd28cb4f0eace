import csv
import subprocess
import sys


def test_a_study_runs_every_cell_once_and_writes_one_row_for_each(tmp_path):
    command = [
        *(sys.executable, "-m", "benchmarks.study", f"--output={tmp_path}"),
        *("--setting=cool: --temperature=0.7 --algorithm=reflection", "--datasets=balance_scale"),
        *("--vary=algorithm=reflection", "--seeds=0", "--num_env_steps=16"),
    ]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)
    )
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stdout == again.stdout
    assert "2 of 2 cells" in again.stderr.splitlines()[0]
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = subprocess.run(
        [*command[:3], f"--rows={tmp_path / 'runs.csv'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == first.stdout
    assert [row["setting"] for row in rows] == ["cool", "algorithm=reflection"]
    assert all(-1 <= float(row["reward_fifth_5"]) <= float(row["reward_best"]) for row in rows)
    assert "| cool | balance_scale | 1 |" in first.stdout


def test_what_is_no_setting_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.study", "--setting=--beta=0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --setting=--beta=0.1: must be 'NAME: FLAGS'\n"
