"""TensorBoard event files, written and cut within this process.

tensorboardX brings the format. Its own `SummaryWriter` writes from a thread, which loses events
when the process is killed and blocks for ever when the disk is full; here an update's events are
on disk, or an error is raised, when the call returns.
"""

import numbers
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from etpo_jax.runs import durable

# TFRecord: length (u64), its checksum (u32), data, its checksum (u32); little endian.
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")


class EventWriter:
    """Writes a file of its own in a folder that TensorBoard watches.

    Made after `cut_events`, which deletes files without events.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Nanoseconds and pid: a run that is resumed within one second must not meet the old file.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        durable.append(
            self._path, _record(Event(file_version="brain.Event:2", wall_time=time.time()))
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row of `metrics.jsonl`: each number but `update` under its own name, at `update`.

        NaN and infinities are kept, texts and None are left out.
        """
        event = Event(wall_time=time.time(), step=row["update"])
        for name, value in row.items():
            is_number = isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0
            if name != "update" and is_number:
                event.summary.MergeFrom(scalar(name, value))
        durable.append(self._path, _record(event))


def cut_events(folder: Path, last_step: int) -> None:
    """Removes events of steps after `last_step` and torn ends from all files of a folder."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        size, is_of_use = 0, False
        for event, end in _read(path):
            is_version = event.HasField("file_version")
            if not is_version and event.step > last_step:
                break
            size, is_of_use = end, is_of_use or not is_version
        if not is_of_use:
            path.unlink()
        elif path.stat().st_size > size:
            durable.truncate(path, size)


def read_events(folder: Path) -> Iterator[Event]:
    """All whole events of a folder, file by file in the order of writing."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        yield from (event for event, _ in _read(path))


def _record(event: Event) -> bytes:
    data = event.SerializeToString()
    length = _LENGTH.pack(len(data))
    checksums = (_CHECKSUM.pack(masked_crc32c(part)) for part in (length, data))
    return length + next(checksums) + data + next(checksums)


def _read(path: Path) -> Iterator[tuple[Event, int]]:
    """Each event with the offset behind it, up to the first torn record."""
    content = path.read_bytes()
    end = 0
    while True:
        length_data, start = _checked(content, end, _LENGTH.size)
        if length_data is None:
            return
        data, end = _checked(content, start, *_LENGTH.unpack(length_data))
        if data is None:
            return
        yield Event.FromString(data), end


def _checked(content: bytes, start: int, size: int) -> tuple[bytes | None, int]:
    """`size` bytes and the offset behind their checksum; None if they are torn or damaged."""
    data = content[start : start + size]
    end = start + size + _CHECKSUM.size
    if end > len(content) or content[start + size : end] != _CHECKSUM.pack(masked_crc32c(data)):
        return None, start
    return data, end
