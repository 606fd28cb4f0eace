"""Event files are read by tensorboardX's own code and hold no step twice."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import SummaryWriter

from etpo_jax.runs.event_files import EventWriter, cut_events, read_events


def _scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in read_events(folder)
        for value in event.summary.value
    ]


def test_numbers_of_a_row_become_scalars(tmp_path: Path) -> None:
    row = {"update": 3, "loss": np.float32(0.5), "kl": np.array(2.0), "note": "text", "none": None}
    EventWriter(tmp_path).write(row)
    assert _scalars(tmp_path) == [(3, "loss", 0.5), (3, "kl", 2.0)]


def test_nan_is_kept(tmp_path: Path) -> None:
    EventWriter(tmp_path).write({"update": 1, "loss": math.nan})
    ((_, _, value),) = _scalars(tmp_path)
    assert math.isnan(value)


def test_the_format_is_that_of_tensorboardx(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        writer.add_scalar("loss", 0.25, 7)
    EventWriter(tmp_path / "ours").write({"update": 7, "loss": 0.25})
    assert _scalars(tmp_path / "theirs") == _scalars(tmp_path / "ours") == [(7, "loss", 0.25)]
    versions = [next(read_events(tmp_path / name)).file_version for name in ("theirs", "ours")]
    assert versions[0].lower() == versions[1].lower()


def test_two_processes_within_a_second_write_two_files(tmp_path: Path) -> None:
    EventWriter(tmp_path)
    EventWriter(tmp_path)
    assert len(os.listdir(tmp_path)) == 2


def test_cut_removes_later_steps_and_torn_ends_from_all_segments(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    for update in (1, 2, 3):
        first.write({"update": update, "loss": float(update)})
    second = EventWriter(tmp_path)
    second.write({"update": 4, "loss": 4.0})
    for path in tmp_path.iterdir():
        with open(path, "ab") as file:
            file.write(b"\x18\0\0\0\0\0\0\0torn")
    cut_events(tmp_path, 2)
    assert [step for step, *_ in _scalars(tmp_path)] == [1, 2]
    # A file that held later steps only is gone; the other grows again without its torn end.
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    cut_events(tmp_path, 2)
    assert path.stat().st_size == size


@pytest.mark.parametrize("position", [8, 14, -1], ids=["length", "data", "end"])
def test_a_damaged_record_ends_the_file(tmp_path: Path, position: int) -> None:
    writer = EventWriter(tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_size
    writer.write({"update": 1, "loss": 1.0})
    content = bytearray(path.read_bytes())
    content[before + position if position >= 0 else position] ^= 0xFF
    path.write_bytes(content)
    assert _scalars(tmp_path) == []


def test_nothing_to_cut(tmp_path: Path) -> None:
    cut_events(tmp_path / "absent", 5)
