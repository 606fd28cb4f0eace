"""Many updates of a small run with all its trackers, after which nothing may have grown.

    WANDB_MODE=offline python -m benchmarks.growth --output=growth.md

By default as many updates as a day has minutes, which is a day of a model that needs a minute for
each. Prints a table in Markdown; the exit code is 1 if memory, descriptors, threads, processes or
files are more at the end than at any time of the first quarter.
"""

import dataclasses
import gc
import importlib.util
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from absl import flags

from benchmarks import soak
from env import command_line
from etpo_jax.runs import directory
from etpo_jax.trainer import Trainer

_flags = flags.FlagValues()
_UPDATES = flags.DEFINE_integer(
    "updates", 24 * 60, "Number of updates.", lower_bound=8, flag_values=_flags
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File that gets the table; printed in any case.", flag_values=_flags
)

_NUM_ENVS = 4
REPORTS = 16
"""Number of measurements of a run."""
_SETTINGS: dict[str, Any] = {
    "dataset": "toy",
    "model": "tiny",
    "num_envs": _NUM_ENVS,
    "minibatch_size": 4,
    "gradient_steps_per_update": 1,
    "replay_size": 16,
    "max_prompt_length": 64,
    "max_new_tokens": 8,
    "checkpoint_every": "10",
}
_HEAD = "| update | memory, MB | descriptors | threads | processes | files | logs, MB |"
_RULE = "|---:|---:|---:|---:|---:|---:|---:|"


@dataclasses.dataclass(frozen=True)
class Figures:
    """Quantities that must not grow.

    Attributes:
      own_bytes: resident memory of this process.
      descriptors: open descriptors of this process.
      threads: threads of this process.
      processes: number of its descendants.
      files: files in the run directory, without those that trackers keep of each sample.
    """

    own_bytes: int
    descriptors: int
    threads: int
    processes: int
    files: int


class Watch:
    """Callback of a run that measures at intervals."""

    def __init__(self, run_path: Path, updates: int):
        """Nothing is measured yet.

        Args:
          run_path: the run directory.
          updates: number of updates of the run.
        """
        self._path, self._interval = run_path, max(1, updates // REPORTS)
        self.history: list[Figures] = []
        self.lines = [_HEAD, _RULE]

    def __call__(self, row: dict[str, Any]) -> None:
        """Measures after this update, if its turn has come."""
        if row["update"] % self._interval:
            return
        time.sleep(0.5)  # for a checkpoint that is being written
        found = self._measure()
        self.history.append(found)
        log_bytes = sum(
            (self._path / name).stat().st_size for name in (directory.METRICS, directory.EPISODES)
        )
        counts = (found.descriptors, found.threads, found.processes, found.files)
        cells = [row["update"], f"{found.own_bytes / 1e6:.1f}", *counts, f"{log_bytes / 1e6:.2f}"]
        self.lines.append(f"| {' | '.join(map(str, cells))} |")
        print(self.lines[-1], flush=True)

    def _measure(self) -> Figures:
        gc.collect()
        own = psutil.Process()
        trackers = self._path / directory.TRACKERS
        return Figures(
            own_bytes=own.memory_info().rss,
            descriptors=own.num_fds(),
            threads=own.num_threads(),
            processes=len(own.children(recursive=True)),
            files=sum(
                path.is_file() and trackers not in path.parents for path in self._path.rglob("*")
            ),
        )


def highest(history: Sequence[Figures]) -> Figures:
    """The largest of each figure: a checkpoint that is being written has some files of its own."""
    names = [field.name for field in dataclasses.fields(Figures)]
    return Figures(**{name: max(getattr(each, name) for each in history) for name in names})


def main() -> int:
    """Trains and returns the exit code."""
    services = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
    trackers = ",".join(["tensorboard", *services])
    print(f"{_UPDATES.value} updates with {trackers}\n\n{_HEAD}\n{_RULE}", flush=True)
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        watch = Watch(Path(folder) / "run", _UPDATES.value)
        trainer = Trainer(
            run_dir=str(Path(folder) / "run"),
            num_env_steps=_NUM_ENVS * _UPDATES.value,
            trackers=trackers,
            callbacks=[watch],
            quiet=True,
            **_SETTINGS,
        )
        trainer.train()
    problems = soak.grown(highest(watch.history[: REPORTS // 4]), watch.history[-1])
    text = "\n".join([f"{_UPDATES.value} updates with {trackers}.", "", *watch.lines, ""])
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text)
    print("".join(f"GROWN: {problem}\n" for problem in problems) or "nothing has grown")
    return 1 if problems else 0


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
