"""Trackers that show the metrics of a run elsewhere: TensorBoard."""

import numbers
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from absl import logging

from etpo_jax.runs import directory, files


class TensorBoard:
    """Event files in a run directory, made from the rows of `metrics.jsonl`.

    Events are written within `write`: tensorboardX's `SummaryWriter` writes from a thread, which
    blocks for ever once the disk is full.
    """

    def __init__(self, run_path: Path) -> None:
        """Replaces the events of the run by those of its rows; without tensorboardX there are none.

        Args:
          run_path: the run directory, cut back to its checkpoint.
        """
        folder = run_path / directory.TENSORBOARD
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer: Any = None
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ImportError as error:
            logging.warning("No TensorBoard events are written: %s", error)
            return
        self._folder = folder
        with files.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        for row in files.read_rows(run_path / directory.METRICS):
            self._add(row)
        self._flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a row of `metrics.jsonl`, each under its own name at step `update`.

        NaN and infinities are kept; texts and None are left out.

        Raises:
          OSError: naming the folder that could not be written.
        """
        if self._writer is not None:
            self._add(row)
            self._flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add(self, row: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        event = Event(wall_time=time.time(), step=row["update"])
        for name, value in files.to_json(row).items():
            number = float(value) if value in ("NaN", "Infinity", "-Infinity") else value
            if name != "update" and isinstance(number, numbers.Real):
                event.summary.MergeFrom(scalar(name, number))
        with files.naming(self._folder):
            self._writer.write_event(event)

    def _flush(self) -> None:
        with files.naming(self._folder):
            self._writer.flush()
