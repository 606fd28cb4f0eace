"""When a run writes its next checkpoint, and the disk that checkpoints take."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from env import shell_limits
from env.base import UsageError
from etpo_jax.runs import files
from etpo_jax.settings import Interval

KEPT = 2
"""Newest checkpoints that a run keeps."""
LARGEST_SHARE = 0.05
"""Share of a run's time that writing checkpoints takes at most with `--checkpoint_every=auto`."""
MOST_LOST_S = 1800.0
"""Seconds of work that a killed run loses at most with `--checkpoint_every=auto`.

It goes before `LARGEST_SHARE`, which a disk that needs longer than 90 seconds for one checkpoint
cannot keep then.
"""
# Bytes per second that a disk is expected to write before the first checkpoint has been timed.
_EXPECTED_RATE = 5e8


class Schedule:
    """Says after which updates a run writes a checkpoint.

    Attributes:
      updates: updates since the newest checkpoint.
    """

    def __init__(
        self,
        interval: Interval,
        num_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """The first interval begins now.

        Args:
          interval: the setting `--checkpoint_every`.
          num_bytes: bytes of a checkpoint.
          clock: seconds from an arbitrary time on.
        """
        self._interval, self._clock = interval, clock
        self._write_s = num_bytes / _EXPECTED_RATE
        self.updates, self._saved_at = 0, clock()

    def is_due(self, write_s: float | None) -> bool:
        """Called after each update; True if a checkpoint is to be written now.

        Args:
          write_s: seconds that the newest checkpoint took, None while it is written and before.
        """
        self.updates += 1
        waited_s = self._clock() - self._saved_at
        if self._interval.number:
            return self.updates >= self._interval.number
        if self._interval.seconds:
            return waited_s >= self._interval.seconds
        self._write_s = self._write_s if write_s is None else write_s
        return waited_s >= min(self._write_s / LARGEST_SHARE, MOST_LOST_S)

    def saved(self) -> None:
        """Called when a checkpoint has been started."""
        self.updates, self._saved_at = 0, self._clock()


def disk_needed(num_bytes: int) -> int:
    """Bytes on the disk while a checkpoint is written beside those that are kept."""
    return (KEPT + 1) * num_bytes


def check_disk(path: Path, num_bytes: int) -> None:
    """Checks that the checkpoints of a run fit its disk; those that are there already count.

    Args:
      path: the folder of the checkpoints or, before it is made, where it will be.
      num_bytes: bytes of a checkpoint.

    Raises:
      UsageError: with the sizes and what to do.
    """
    largest = shell_limits.largest_file()
    if largest is not None and largest < num_bytes:
        raise UsageError(
            f"ulimit -f allows files of {files.bytes_text(largest)}, and a checkpoint has "
            f"{files.bytes_text(num_bytes)}: raise it, or ask whoever set it"
        )
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    present = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    free, needed = shutil.disk_usage(there).free, disk_needed(num_bytes)
    if needed <= free + present:
        return
    text = files.bytes_text
    raise UsageError(
        f"{path}: checkpoints need {text(needed)} ({KEPT + 1} of {text(num_bytes)}) and its disk "
        f"has {text(free + present)} for them: choose a --run_dir on a larger disk, or train less "
        "(--finetune=lora)"
    )
