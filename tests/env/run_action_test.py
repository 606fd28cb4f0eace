"""`python -m env.run_action`: one JSON line and an exit code."""

import json
import subprocess
import sys

import numpy as np
import pytest

from env.isolation import TIERS

BODY = """\
from sklearn.linear_model import LogisticRegression
    model = LogisticRegression()
    model.fit(x_train, y_train)
"""


def _run(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "env.run_action", *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_scored_body(tmp_path):
    path = tmp_path / "body.py"
    path.write_text(BODY)
    done = _run("--dataset=balance_scale", f"--action_file={path}", "--num_workers=2")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["reward"] == np.mean(result["split_scores"])
    assert 0.5 < result["reward"] <= 1
    assert result["error"] == ""
    assert result["dataset"] == "balance_scale"
    assert result["isolation"] in TIERS
    assert result["wall_s"] > 0


def test_a_failing_body_from_standard_input():
    done = _run("--action_file=-", "--num_splits=2", text="open('/etc/passwd')")
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads(done.stdout)
    assert result["reward"] == -1
    assert result["split_scores"] == []
    assert result["error"].startswith("PermissionError: ")


def test_a_reward_is_the_same_in_each_form(tmp_path):
    path = tmp_path / "program.py"
    unindented = BODY.replace("\n    ", "\n")
    whole = f"def build_model(x_train, y_train):\n    {BODY}    return model\n"
    other_names = whole.replace("x_train", "rows").replace("y_train", "classes")
    rewards = set()
    for text in (BODY, unindented, whole, other_names):
        path.write_text(text)
        done = _run("--num_splits=2", f"--action_file={path}", "--metric=accuracy")
        assert (done.returncode, done.stderr) == (0, "")
        rewards.add(json.loads(done.stdout)["reward"])
    assert len(rewards) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--action_file is missing"),
        (["--action_file=none.py"], "--action_file=none.py: there is no such file"),
        (["--action_file=-", "--dataset=nothing"], "nothing"),
        (["--action_file=-", "--timeout_s=0"], "timeout_s is 0.0 and must be above 0"),
        (["--action_file=-", "--cpu_s=0"], "cpu_s is 0 and must be at least 1"),
        (["--action_file=-", "--max_output_kb=-1"], "max_output_bytes is -1024 and must be at"),
        (["--action_file=-", "--isolation=none"], "isolation"),
        (["--action_file=-", "--metric=auc"], "--metric=auc: must be one of roc_auc"),
        (["--action_file=-", "--libraries=nothing"], "No module named 'nothing'"),
        (["--acton_file=-"], "action_file"),
        (["-"], "unexpected argument '-'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments, message):
    done = _run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "body.py"
    path.write_bytes(b"\xff\xfe")
    done = _run(f"--action_file={path}")
    assert done.returncode == 2
    assert "not a text in UTF-8" in done.stderr
