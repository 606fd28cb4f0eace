"""Libraries take fewer mappings once they are joined, and still work."""

import subprocess
import sys

_PROGRAM = """
import numpy as np
from env.sandbox import mappings

def count():
    with open("/proc/self/maps") as file:
        return sum(".so" in line for line in file)

before = count()
mappings.join()
after = count()
np.linalg.svd(np.eye(3))
import unicodedata, _decimal  # the linker still works
print(after / before)
"""


def test_libraries_are_joined():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.7
