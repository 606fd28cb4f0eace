"""The ten-minute script keeps its time, falls back, says what it did, and runs on a CPU."""

import math
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from benchmarks import device_checks, device_files, records

ROOT = pathlib.Path(__file__).parents[2]
# In processes of their own: the benchmark defines flags.
FAKE_STAGE = """
import json, sys, time
task = json.load(sys.stdin)
def add(what, **more):
    row = {"stage": task["stage"], "what": what, "result": str(task["layers"]), "beside": ""}
    with open(task["records"], "a") as file:
        file.write(json.dumps({**row, "is_ok": None, **more}) + "\\n")
"""
SESSION = """
import pathlib, sys
from benchmarks import device
work = pathlib.Path(sys.argv[1])
session = device.Session(
    "codellama_7b", False, work / "out.jsonl", work / "work", float(sys.argv[3]) + device._LAST_S,
    command=(sys.executable, "-c", sys.argv[2]),
)
session.run("generation", ["generation"])
"""


def run_session(folder, stage, seconds):
    """Records of a session with one stage of the large model, whose process runs this code."""
    subprocess.run(
        [sys.executable, "-c", SESSION, str(folder), FAKE_STAGE + stage, str(seconds)],
        cwd=ROOT,
        check=True,
    )
    return records.read(folder / "out.jsonl")


def test_a_stage_that_does_not_compile_in_time_is_tried_with_fewer_layers(tmp_path):
    rows = run_session(tmp_path, "if not task['layers']: time.sleep(60)\nadd('measured')", 8)
    assert "not compiled after" in rows[0]["result"]
    assert "again with 8 layers" in rows[0]["result"]
    assert rows[0]["is_ok"] is False
    assert [(row["what"], row["result"]) for row in rows[1:]] == [("measured", "8")]


def test_a_stage_that_has_compiled_gets_all_of_its_time_and_is_then_ended(tmp_path):
    rows = run_session(tmp_path, "add('first call', compiled=True)\ntime.sleep(60)", 3)
    assert [row["what"] for row in rows[:2]] == ["first call", "generation"]
    assert "not finished after" in rows[1]["result"]


def test_a_stage_that_fails_says_why(tmp_path):
    rows = run_session(tmp_path, "raise SystemExit('RESOURCE_EXHAUSTED: no memory')", 20)
    assert len(rows) == 2
    assert "RESOURCE_EXHAUSTED: no memory; again with 8 layers" in rows[0]["result"]
    assert rows[1]["result"].endswith("RESOURCE_EXHAUSTED: no memory")


def test_the_session_on_this_machine_from_end_to_end(tmp_path):
    output = tmp_path / "results" / "cpu"
    command = [sys.executable, "-m", "benchmarks.device", "--model=tiny", f"--output={output}"]
    done = subprocess.run(
        [*command, "--stages=device,ceilings,generation", "--minutes=8"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = records.read(output.with_name("cpu.jsonl"))
    assert {row["stage"] for row in rows} == {"device", "ceilings", "generation"}
    rates = {row["ceiling"]: row["rate"] for row in rows if "ceiling" in row}
    assert rates["copy"] > 1e8
    step = next(row for row in rows if "step_s" in row)
    assert step["whole_s"] > 0 < step["must_bytes"]
    assert "of a copy" in step["beside"]
    text = output.with_name("cpu.md").read_text()
    assert text.count("\n| ") == len(rows)  # the first line is the head
    with tarfile.open(output.with_name("cpu.compiler.tar")) as tar:
        assert any("generate" in name and "after_optimizations" in name for name in tar.getnames())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages=devise", "--model=tiny"], "--stages=devise: must be out of device, "),
        ([], "--model=codellama_7b: there is no GPU here; --model=tiny runs on a CPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr


def values():
    return {
        "tokens": np.array([[5, 6, 7], [8, 9, 10]]),
        "log_probs": np.full((2, 3), -1.0, np.float32),
        "metric/critic_loss": np.float32(2.0),
        "gradient/policy/kernel": np.array([3.0, 4.0], np.float32),
    }


def compared(**changed):
    here = values() | {name.replace("__", "/"): value for name, value in changed.items()}
    return [difference for _, difference, _ in device_checks.differences(here, values())]


def test_values_of_two_devices_are_compared():
    assert compared() == [0, 0, 0, 0]
    # The row is another one behind a token that differs.
    other = compared(
        tokens=np.array([[5, 1, 7], [8, 9, 10]]),
        log_probs=np.array([[-1, -9, -9], [-1, -1, -1.5]], np.float32),
    )
    assert other[0] == pytest.approx(2 / 6)
    assert other[1] == pytest.approx(0.5)
    assert compared(metric__critic_loss=np.float32(2.2))[2] == pytest.approx(0.1)
    gradient = compared(gradient__policy__kernel=np.array([3.0, 4.5], np.float32))
    assert gradient[3] == pytest.approx(0.1)
    assert compared(gradient__policy__kernel=np.array([3.0, np.nan]))[3] == math.inf


def test_attention_in_16_bits_is_near_float32_and_a_wrong_one_is_not():
    case = device_checks.AttentionCase(rows=2, length=24, heads=2, size=8)
    for name in ("reference", "xla"):
        found = case.compare(name)
        assert 1e-4 < max(found.values()) < device_checks.ATTENTION_TOLERANCE, found
    with pytest.MonkeyPatch.context() as patch:
        right = device_checks.causal_visibility
        patch.setattr(  # a query that sees the future, in 16 bits alone
            device_checks,
            "causal_visibility",
            lambda mask, name: right(mask, name) | (name == "xla"),
        )
        case = device_checks.AttentionCase(rows=2, length=24, heads=2, size=8)
        assert max(case.compare("xla").values()) > device_checks.ATTENTION_TOLERANCE


def test_the_compilers_output_is_packed_up_to_a_limit(tmp_path, monkeypatch):
    dump = tmp_path / "work" / "generation_0" / "dump"
    dump.mkdir(parents=True)
    (dump / "autotune.txtpb").write_text("results {}")
    (dump / "m.after_optimizations.txt").write_bytes(os.urandom(2000))
    (dump / "m.obj-file.o").write_text("not kept")
    packed, left_out = device_files.pack(tmp_path / "work", tmp_path / "out.tar")
    assert packed == [
        "generation_0/dump/autotune.txtpb",
        "generation_0/dump/m.after_optimizations.txt",
    ]
    assert left_out == []
    monkeypatch.setattr(device_files, "_LIMIT_BYTES", 1000)
    packed, left_out = device_files.pack(tmp_path / "work", tmp_path / "out.tar")
    assert (len(packed), len(left_out)) == (1, 1)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert device_files.pack(empty, tmp_path / "none.tar") == ([], [])
    assert not (tmp_path / "none.tar").exists()
