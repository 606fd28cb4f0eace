"""shell_limits: limits of the shell are adapted to, or named with what to do about them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from env import shell_limits
from env.base import UsageError

ROOT = Path(__file__).parents[2]
BODY = "from sklearn.naive_bayes import GaussianNB\nmodel = GaussianNB().fit(x_train, y_train)\n"


@pytest.fixture
def limited(monkeypatch):
    """Pretends that a limit has this value."""

    def limited(name, value):
        true = resource.getrlimit
        monkeypatch.setattr(
            resource, "getrlimit", lambda asked: (value, value) if asked == name else true(asked)
        )

    return limited


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (resource.RLIMIT_NOFILE, 40, r"ulimit -n is 40, and a run needs at least 128 open files"),
        (resource.RLIMIT_AS, 2**30, r"ulimit -v is 1048576, and a run needs at least 2000000 KiB"),
        (resource.RLIMIT_NPROC, 3, r"ulimit -u is 3, and a run needs at least \d+ processes"),
    ],
)
def test_a_limit_that_is_too_low_for_a_run_is_named(limited, monkeypatch, name, value, message):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    limited(name, value)
    with pytest.raises(UsageError, match=f"^{message}.*: raise it with `ulimit -"):
        shell_limits.check()


def test_generous_limits_are_not_mentioned(limited):
    limited(resource.RLIMIT_NOFILE, 2**20)
    assert "-n" not in shell_limits.describe()
    limited(resource.RLIMIT_FSIZE, 512 * 1024)
    assert "ulimit -f 512" in shell_limits.describe()
    assert shell_limits.largest_file() == 512 * 1024


def run_action(tmp_path, limit, *flags):
    (tmp_path / "body.py").write_text(BODY)
    program = f"env.run_action --dataset=balance_scale --action_file={tmp_path / 'body.py'}"
    command = f"ulimit {limit}; exec {sys.executable} -m {program} {' '.join(flags)}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_walls_stand_within_a_limit_of_address_space(tmp_path):
    status, out, errors = run_action(tmp_path, "-v 4000000")
    assert (status, errors) == (0, "")
    assert '"error": ""' in out


def test_a_limit_below_what_a_program_is_promised_is_named(tmp_path):
    status, out, errors = run_action(tmp_path, "-v 1000000")
    assert (status, out) == (2, "")
    (line,) = errors.splitlines()
    assert "ulimit -v is 1000000 and a program needs " in line
    assert "raise it, or lower memory_mb" in line


def test_soft_limits_are_raised():
    program = (
        "import resource as r; from env import shell_limits as s; s.raise_soft_limits(); "
        "print(*(r.getrlimit(r.RLIMIT_NOFILE)))"
    )
    done = subprocess.run(
        ["bash", "-c", f"ulimit -Sn 20; ulimit -Hn 200; exec {sys.executable} -c '{program}'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["200", "200"]
