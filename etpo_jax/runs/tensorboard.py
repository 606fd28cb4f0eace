"""TensorBoard's event file in a run directory: scalars, settings, samples and the best program."""

import contextlib
import html
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etpo_jax.runs import directory, files
from etpo_jax.runs.tracked_run import SAMPLE_COLUMNS, BestProgram, TrackedRun, numbers_of


class TensorBoard:
    """Event file of a run, made from the rows of `metrics.jsonl`.

    tensorboardX's `SummaryWriter` is not used: it writes from a thread, which blocks for ever once
    the disk is full. Here the events of a row are on the disk when `write` returns.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Removes the events of earlier processes and writes those of the settings.

        Raises:
          OSError: naming the folder that could not be written.
        """
        from tensorboardX import RecordWriter, summary

        self._summary = summary
        self._folder = run.path / directory.TENSORBOARD
        self.next_update = 1
        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer: Any = None
        try:
            with files.naming(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = RecordWriter(str(self._folder / name))
                self._add(file_version="brain.Event:2")
                self._add_settings(run)
                self._writer.flush()
        except BaseException:
            self._close()
            raise

    def write(self, row: Mapping[str, Any], samples: Sequence[Sequence[Any]]) -> None:
        """Adds the numbers of a row, each under its own name at step `update`, and samples as text.

        Raises:
          OSError: naming the folder that could not be written.
        """
        values = [
            {"tag": name, "simple_value": number}
            for name, number in numbers_of(row).items()
            if name != "update"
        ]
        with files.naming(self._folder):
            self._add(step=row["update"], summary={"value": values})
            if samples:
                self._add_text("samples", _table(samples), row["update"])
            self._writer.flush()

    def write_best(self, best: BestProgram, update: int) -> None:
        """Adds the best program as text; errors as in `write`."""
        facts = ", ".join(f"{name} {best.facts.get(name)}" for name in ("reward", "env_step"))
        with files.naming(self._folder):
            self._add_text("best program", f"{facts}\n\n{_indented(best.code)}", update)
            self._writer.flush()

    def write_scores(self, numbers: Mapping[str, float], update: int) -> None:
        """Adds the final scores, each under its own name; errors as in `write`."""
        values = [{"tag": name, "simple_value": number} for name, number in numbers.items()]
        with files.naming(self._folder):
            self._add(step=update, summary={"value": values})
            self._writer.flush()

    def close(self, *, is_finished: bool) -> None:
        """Closes the event file; the list of runs shows a finished one as a success."""
        if is_finished:
            with files.naming(self._folder):
                self._add(summary=self._end)
                self._writer.flush()
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            # A full disk has been reported by `write`; closing fails on what is left in the buffer.
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _add_settings(self, run: TrackedRun) -> None:
        scalars = {"reward_mean": None, "reward_best": None, "runnable_rate": None}
        *starts, self._end = self._summary.hparams(run.settings, scalars)
        for start in starts:
            self._add(summary=start)
        facts = {"run": run.title, **run.facts}
        self._add_text("run", "\n".join(f"- {name}: {value}" for name, value in facts.items()), 0)

    def _add_text(self, name: str, markdown: str, update: int) -> None:
        self._add(step=update, summary=self._summary.text(name, markdown))

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


def _table(samples: Sequence[Sequence[Any]]) -> str:
    """Rows of `SAMPLE_COLUMNS` as a table in Markdown."""
    lines = ["|".join(SAMPLE_COLUMNS), "|".join("---" for _ in SAMPLE_COLUMNS)]
    return "\n".join([*lines, *("|".join(map(_cell, sample)) for sample in samples)])


def _cell(value: Any) -> str:
    # A line break or a bar would end the cell.
    text = html.escape(f"{value:.4f}" if isinstance(value, float) else str(value))
    lines = text.replace("|", "&#124;").split("\n")
    return f"<pre>{'<br>'.join(lines)}</pre>" if len(lines) > 1 else lines[0]


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())
