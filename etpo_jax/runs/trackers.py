"""Trackers that show the metrics of a run elsewhere: TensorBoard."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from absl import logging

from etpo_jax.runs import directory, files


class TensorBoard:
    """Event file in a run directory, made from the rows of `metrics.jsonl`.

    tensorboardX's `SummaryWriter` is not used: it writes from a thread, which blocks for ever once
    the disk is full. Here the events of a row are on the disk when `write` returns.
    """

    def __init__(self, run_path: Path) -> None:
        """Replaces the events of the run by those of its rows; without tensorboardX there are none.

        Args:
          run_path: the run directory, cut back to its checkpoint.
        Raises:
          OSError: naming the folder that could not be written.
        """
        self._folder = run_path / directory.TENSORBOARD
        self._writer: Any = None
        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        try:
            from tensorboardX import RecordWriter
        except ImportError as error:
            logging.warning("No TensorBoard events are written: %s", error)
            return
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            with files.naming(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = RecordWriter(str(self._folder / name))
                self._add(file_version="brain.Event:2")
                for row in files.read_rows(run_path / directory.METRICS):
                    self._add_row(row)
                self._writer.flush()
        except BaseException:
            self.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a row of `metrics.jsonl`, each under its own name at step `update`.

        NaN and infinities are kept; texts and None are left out.

        Raises:
          OSError: naming the folder that could not be written.
        """
        if self._writer is not None:
            with files.naming(self._folder):
                self._add_row(row)
                self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            # A full disk has been reported by `write`; closing fails on what is left in the buffer.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add_row(self, row: Mapping[str, Any]) -> None:
        numbers = {name: files.to_number(value) for name, value in row.items() if name != "update"}
        values = [
            {"tag": name, "simple_value": number}
            for name, number in numbers.items()
            if number is not None
        ]
        self._add(step=row["update"], summary={"value": values})

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
