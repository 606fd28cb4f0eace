"""A shorter run of `benchmarks.soak`: nothing grows."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_thousand_executions_leave_nothing_behind():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--num_executions=1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing has grown" in done.stdout
