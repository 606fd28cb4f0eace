"""The events of a run, read by TensorBoard's own format."""

import struct
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event

from etpo_jax.runs import directory


def values(run_path: Path) -> list[tuple[int, Any]]:
    """Step and value of every event; a record is a length, its checksum, data, its own."""
    found = []
    for path in sorted((run_path / directory.TENSORBOARD).iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            start += 16 + length
    return found


def scalars(run_path: Path) -> list[tuple[int, str, float]]:
    return [
        (step, value.tag, value.simple_value)
        for step, value in values(run_path)
        if value.WhichOneof("value") == "simple_value"
    ]
