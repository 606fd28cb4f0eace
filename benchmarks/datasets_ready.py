"""Seconds until each table is ready from a warm cache: `python -m benchmarks.datasets_ready`.

Each table is loaded in a fresh process. `import` is that of numpy and `env.datasets`, `ready` the
first `load_dataset` after it; medians of `--repeats` processes. Tables that are not cached are said
so: fill the cache with `python -m env.datasets fetch all` first.
"""

import statistics
import subprocess
import sys

from absl import flags

from env import command_line
from env.datasets import cache_folder
from env.tables import cache, registry

_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Folder of prepared tables.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Processes for each table.", lower_bound=1)
_TARGET_S = 0.3

_CHILD = """
import sys, time
start = time.perf_counter()
import numpy
from env.datasets import load_dataset
imported = time.perf_counter()
load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(imported - start, time.perf_counter() - imported)
"""


def main() -> int:
    """Prints one line for each table; the exit code tells whether all met the target."""
    folder = cache_folder(_CACHE_DIR.value)
    slowest = 0.0
    print(f"{'table':<20}{'import s':>10}{'ready s':>10}")
    for name, entry in registry.REGISTRY.items():
        if entry.source != "rule" and cache.load(folder, name) is None:
            print(f"{name:<20}{'not cached':>20}")
            continue
        times = [_times(name, str(folder)) for _ in range(_REPEATS.value)]
        imported, ready = (statistics.median(column) for column in zip(*times, strict=True))
        slowest = max(slowest, ready)
        print(f"{name:<20}{imported:>10.3f}{ready:>10.4f}")
    print(f"slowest: {slowest:.4f} s, target: {_TARGET_S} s")
    return int(slowest > _TARGET_S)


def _times(name: str, folder: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, name, folder], capture_output=True, text=True, check=True
    )
    imported, ready = map(float, done.stdout.split())
    return imported, ready


if __name__ == "__main__":
    command_line.run(main)
