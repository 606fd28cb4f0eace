"""A short run of `benchmarks.soak`: nothing grows."""

import subprocess
import sys


def test_executions_leave_nothing_behind():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--num_executions=200"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing has grown" in done.stdout
