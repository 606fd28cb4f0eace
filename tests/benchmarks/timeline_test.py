import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import timeline

ROOT = pathlib.Path(__file__).parents[2]


def begin(wall, cpu, programs_cpu):
    return {"kind": timeline.BEGIN, "wall": wall, "cpu": cpu, "programs_cpu": programs_cpu}


def span(kind, wall, cpu):
    return {"kind": kind, "wall": list(wall), "cpu": list(cpu)}


# 1 s of generation; programs for 5 s, of which the main thread learns 2 s; a gradient step of 2 s
# that begins half a second before the programs are done; 1 s of something else.
ONE_UPDATE = [
    begin(10.0, 100.0, 7.0),
    span(timeline.GENERATE, (10.0, 11.0), (100.0, 100.8)),
    span(timeline.UPDATE, (11.0, 13.0), (100.8, 102.4)),
    span(timeline.UPDATE, (15.5, 17.5), (102.6, 104.2)),
    span(timeline.EXECUTE, (11.0, 16.0), (100.8, 103.0)),
    begin(18.5, 104.5, 11.0),
]


def test_parts_of_an_update_do_not_overlap_and_make_up_the_whole():
    ((parts, programs_cpu),) = timeline.breakdowns(ONE_UPDATE)
    assert parts[timeline.GENERATE] == timeline.Cost(1.0, pytest.approx(0.8))
    assert parts[timeline.UPDATE] == timeline.Cost(4.0, pytest.approx(3.2))
    # 5 s less 2 s and half a second; 2.2 s of processor less 1.6 s and a quarter of 1.6 s.
    assert parts[timeline.WAIT] == timeline.Cost(2.5, pytest.approx(0.2))
    assert parts[timeline.REST].wall == pytest.approx(1.0)
    assert sum(cost.wall for cost in parts.values()) == pytest.approx(8.5)
    assert sum(cost.cpu for cost in parts.values()) == pytest.approx(4.5)
    assert programs_cpu == 4.0


def test_an_update_without_an_end_is_left_out():
    assert timeline.breakdowns(ONE_UPDATE[:-1]) == []


def test_tracing_inside_another_program_counts_once():
    rows = [
        {"kind": timeline.COMPILE, "step": step, "name": name, "seconds": seconds}
        for step, name, seconds in (
            ("trace", "log_softmax", 0.5),
            ("trace", "update_step", 2.0),
            ("lower", "jit_update_step", 1.0),
            ("compile", "jit(update_step)", 4.0),
        )
    ]
    assert timeline.compile_seconds(rows) == {"update_step": 7.0}


def test_processor_time_of_children_counts_while_they_run_and_after():
    before = timeline.descendants_cpu_s()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline()
        running = timeline.descendants_cpu_s()
        child.communicate(b"\n")
    assert running - before >= 0.25
    assert timeline.descendants_cpu_s() >= running - 0.05


def test_a_timed_call_is_written_with_its_costs(tmp_path):
    with open(tmp_path / "rows", "w") as file:
        timed = timeline.Timeline(file).timed(timeline.LOGS, lambda value: value + 1)
        assert timed(1) == 2
    (row,) = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert row["kind"] == timeline.LOGS
    assert 0 <= row["wall"][1] - row["wall"][0] < 5
    assert row["cpu"][0] <= row["cpu"][1]


def test_the_clock_finds_every_method_that_it_is_put_on(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.timed_train", "--flagfile=launch/tiny.flags"),
            *(f"--run_dir={tmp_path / 'run'}", f"--timeline={tmp_path / 'rows'}", "--dry_run"),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "balance_scale" in result.stdout
