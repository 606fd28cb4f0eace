"""Grids of stand-in programs that take no time: what a grid does does not depend on training."""

import subprocess
import sys

import pytest

from etpo_jax.reproduction import grid
from etpo_jax.reproduction.grid import Cell
from etpo_jax.runs import files

# argv: run directory, environment steps, what to do. Notes that it was called.
PROGRAM = """
import json, pathlib, signal, sys, time
folder, steps, what = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "calls", "a") as file:
    file.write("x")
if what == "wait":
    time.sleep(60)
if what == "fail":
    print("working"); print("error: no such table"); sys.exit(2)
if what != "short":
    (folder / "finished.json").write_text(json.dumps({"env_step": steps}))
"""


def run_grid(cells, output, what=lambda cell: "work", num_env_steps=32, **values):
    def command(cell, folder):
        return [sys.executable, "-c", PROGRAM, str(folder), "32", what(cell)]

    lines = []
    settings = {
        "is_finished": lambda folder: grid.has_steps(folder, num_env_steps),
        "jobs": 2,
        "is_stopped": lambda: False,
        **values,
    }
    settings.setdefault("on_change", lambda progress: lines.append(progress.table()))
    return grid.run(cells, output, command, **settings), lines


CELLS = [Cell(name, "balance_scale", seed) for name in ("etpo", "ppo_kl") for seed in (0, 1)]


def calls(cell, output):
    return len((cell.folder(output) / "calls").read_text())


def test_every_cell_has_a_run_directory_of_its_own_and_runs_once(tmp_path):
    outcomes, tables = run_grid(CELLS, tmp_path)
    assert sorted(outcome.cell for outcome in outcomes) == CELLS
    assert not any(outcome.error for outcome in outcomes)
    assert len({cell.folder(tmp_path) for cell in CELLS}) == 4
    run_grid(CELLS, tmp_path)
    assert [calls(cell, tmp_path) for cell in CELLS] == [1, 1, 1, 1]
    assert "| etpo | 2/2 |" in tables[-1]
    assert "4 of 4 cells" in tables[-1]
    # More steps than were done: all go on.
    run_grid(CELLS, tmp_path, num_env_steps=33)
    assert [calls(cell, tmp_path) for cell in CELLS] == [2, 2, 2, 2]


def test_a_failed_cell_is_named_and_the_others_go_on(tmp_path):
    bad = CELLS[0]

    def what(cell):
        return "fail" if cell == bad else "work"

    outcomes, tables = run_grid(CELLS, tmp_path, what, jobs=1)
    assert [outcome.cell for outcome in outcomes if outcome.error] == [bad]
    assert (
        "- failed: etpo on balance_scale, seed 0: exit code 2, error: no such table" in tables[-1]
    )
    assert "| etpo | 1/2 (1 failed) |" in tables[-1]
    # It is tried again by the next call, and the others are not.
    run_grid(CELLS, tmp_path)
    assert [calls(cell, tmp_path) for cell in CELLS] == [2, 1, 1, 1]


def test_a_program_that_ends_early_without_an_error_is_a_failure(tmp_path):
    outcomes, _ = run_grid(CELLS[:1], tmp_path, lambda cell: "short")
    assert "did not finish, it printed nothing" in outcomes[0].error


def test_a_stopped_grid_tells_its_programs_and_counts_nothing_as_failed(tmp_path):
    first = CELLS[0].folder(tmp_path) / "calls"
    outcomes, _ = run_grid(CELLS, tmp_path, lambda cell: "wait", jobs=1, is_stopped=first.exists)
    assert outcomes == []
    assert not CELLS[1].folder(tmp_path).exists()


def test_an_error_in_the_grid_leaves_no_program_behind(tmp_path, monkeypatch):
    started = []

    class Remembered(subprocess.Popen):
        def __init__(self, *arguments, **values):
            super().__init__(*arguments, **values)
            started.append(self)

    def is_stopped():
        if (CELLS[0].folder(tmp_path) / "calls").exists():
            raise RuntimeError("broken")
        return False

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    with pytest.raises(RuntimeError, match="broken"):
        run_grid(CELLS[:1], tmp_path, lambda cell: "wait", is_stopped=is_stopped)
    assert [process.returncode for process in started] == [143]


def test_the_remaining_time_is_that_of_the_cells_so_far():
    now = [0.0]
    progress = grid.Progress(CELLS, 2, lambda: now[0])
    assert "ETA ?" in progress.line()
    progress.end(grid.Outcome(CELLS[0], ""), seconds=None)
    assert "ETA ?" in progress.line()
    now[0] = 90.0
    progress.end(grid.Outcome(CELLS[1], ""), seconds=60.0)
    # Two cells left, two at a time, a minute each.
    assert "2 of 4 cells, 01:30 so far, ETA 01:00" in progress.line()


def test_paths_as_data_sets_become_folders():
    assert grid.folder_name("csv:/home/me/my table.csv") == "csv_home_me_my_table.csv"
    assert grid.folder_name("balance_scale") == "balance_scale"


def test_finished_means_enough_steps(tmp_path):
    assert not grid.has_steps(tmp_path, 1)
    files.write_json(tmp_path / "finished.json", {"env_step": 16})
    assert grid.has_steps(tmp_path, 16)
    assert not grid.has_steps(tmp_path, 17)
