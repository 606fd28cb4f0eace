"""The program as its users run it, from a folder that is not the checkout, on the toy task."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "etpo_jax.reproduce", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_grid_of_one_run_makes_its_tables_and_figures(tmp_path):
    setup = tmp_path / "setup.flags"
    setup.write_text("--max_prompt_length=128\n--max_new_tokens=24\n--num_envs=4\n")
    output = tmp_path / "grid"
    result = run(
        tmp_path,
        *("--algorithms=reflection", "--datasets=toy", "--seeds=3", "--num_env_steps=8"),
        *("--tables=2", "--figures=3", f"--setup={setup}", "--output=grid"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 of 1 cells" in result.stdout
    report = (output / "report.md").read_text()
    assert "| toy |" in report
    assert "--num_env_steps=8" in report
    names = {"methods.csv", "datasets.md", "table2.md", "figure3.png", "figure3.svg"}
    assert names <= {path.name for path in output.iterdir()}
    log = output / "runs" / "reflection" / "toy" / "3" / "metrics.jsonl"
    assert len(log.read_text().splitlines()) == 2


def test_bad_input_is_one_clear_line(tmp_path):
    result = run(tmp_path, "--tables=7")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line == "error: --tables=7: must be among 2, 3, 4, 5"
