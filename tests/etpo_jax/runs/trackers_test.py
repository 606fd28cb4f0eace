"""TensorBoard's events are the rows of the run, read back here by TensorBoard's own format."""

import math
import os
import struct
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from absl import logging
from tensorboardX.proto.event_pb2 import Event

from etpo_jax.runs import directory, files
from etpo_jax.runs.trackers import TensorBoard


def _scalars(run_path: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every event; a record is a length, its checksum, data, its own."""
    found = []
    for path in sorted((run_path / directory.TENSORBOARD).iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += 16 + length
    return found


def test_numbers_of_a_row_become_scalars_at_once(tmp_path: Path) -> None:
    row = {"update": 3, "loss": np.float32(0.5), "kl": np.array(2.0), "note": "text", "none": None}
    with TensorBoard(tmp_path) as events:
        events.write(row)
        assert _scalars(tmp_path) == [(3, "loss", 0.5), (3, "kl", 2.0)]


def test_nan_is_kept(tmp_path: Path) -> None:
    files.append_rows(tmp_path / directory.METRICS, [{"update": 1, "loss": math.nan}])
    with TensorBoard(tmp_path) as events:
        events.write({"update": 2, "loss": math.inf})
    (_, _, first), (_, _, second) = _scalars(tmp_path)
    assert math.isnan(first)
    assert second == math.inf


def test_a_resumed_run_has_the_events_of_its_rows_and_no_others(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as events:
        for update in (1, 2, 3):
            events.write({"update": update, "loss": update / 2})
    folder = tmp_path / directory.TENSORBOARD
    (folder / "notes.txt").write_text("")
    (old,) = folder.glob("events*")
    with open(old, "ab") as file:
        file.write(b"torn")
    rows = [{"update": update, "loss": update / 2} for update in (1, 2)]
    files.append_rows(tmp_path / directory.METRICS, rows)
    with TensorBoard(tmp_path) as events:
        events.write({"update": 3, "loss": 0.25})
    (folder / "notes.txt").unlink()
    assert _scalars(tmp_path) == [(1, "loss", 0.5), (2, "loss", 1.0), (3, "loss", 0.25)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_full(path: str) -> IO[bytes]:
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")

    with TensorBoard(tmp_path) as events:
        events._writer.close()
        events._writer._writer = open_full("")
        with pytest.raises(OSError, match="No space left") as caught:
            events.write({"update": 1, "loss": 0.5})
    assert caught.value.filename == str(tmp_path / directory.TENSORBOARD)
    monkeypatch.setattr("tensorboardX.record_writer.open_file", open_full)
    with pytest.raises(OSError, match="No space left"):
        TensorBoard(tmp_path)


def test_training_goes_on_without_tensorboardx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[Any] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with TensorBoard(tmp_path) as events:
        events.write({"update": 1, "loss": 0.5})
    (message,) = messages
    assert message.startswith("No TensorBoard events are written: ")
    assert not (tmp_path / directory.TENSORBOARD).exists()
