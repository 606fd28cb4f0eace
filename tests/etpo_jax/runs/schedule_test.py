"""Checkpoints are written as often as their cost allows, and only where the disk has room."""

import shutil

import pytest

from env.base import UsageError
from etpo_jax.runs import schedule
from etpo_jax.runs.schedule import Schedule
from etpo_jax.settings import Interval, parse_interval

GIB = 2**30


def saves(interval, *, update_s, write_s, num_updates, num_bytes=0):
    """Numbers of the updates after which a checkpoint is written."""
    now = [0.0]
    planned = Schedule(interval, num_bytes, clock=lambda: now[0])
    saved = []
    for update in range(1, num_updates + 1):
        now[0] += update_s
        if planned.is_due(write_s if saved else None):
            saved.append(update)
            planned.saved()
    return saved


def test_a_number_of_updates_and_a_time():
    common = {"update_s": 7.0, "write_s": 100.0, "num_updates": 10}
    assert saves(Interval(number=3), **common) == [3, 6, 9]
    assert saves(Interval(seconds=20.0), **common) == [3, 6, 9]


def test_the_automatic_choice_takes_a_twentieth_of_the_time():
    # The first interval goes by the size, 1 s at 0.5 GB/s; the others by the 3 s that it took.
    common = {"update_s": 10.0, "write_s": 3.0, "num_bytes": 500_000_000}
    assert saves(Interval(), num_updates=20, **common) == [2, 8, 14, 20]
    # A small state is saved after every update.
    assert saves(Interval(), update_s=1.0, write_s=0.05, num_updates=4) == [1, 2, 3, 4]


def test_the_automatic_choice_loses_half_an_hour_at_most():
    common = {"update_s": 60.0, "write_s": 600.0, "num_bytes": 75 * GIB}
    assert saves(Interval(), num_updates=90, **common) == [30, 60, 90]


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("auto", Interval()),
        ("10", Interval(number=10)),
        ("90s", Interval(seconds=90.0)),
        ("1.5min", Interval(seconds=90.0)),
        ("2h", Interval(seconds=7200.0)),
    ],
)
def test_settings_are_read(text, interval):
    assert parse_interval("checkpoint_every", text) == interval


@pytest.mark.parametrize("text", ["", "0", "0s", "1.5", "-3", "10m", "often"])
def test_other_settings_are_refused(text):
    with pytest.raises(ValueError, match=f"--checkpoint_every={text}: must be auto, a number of"):
        parse_interval("checkpoint_every", text)


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    schedule.check_disk(tmp_path / "new" / "checkpoints", 5 * GIB // 3)
    with pytest.raises(UsageError, match=r"checkpoints need 6.0 GiB \(3 of 2.0 GiB\) and its disk"):
        schedule.check_disk(tmp_path / "new" / "checkpoints", 2 * GIB)


def test_what_an_earlier_process_wrote_counts_as_room(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "array").write_bytes(b"0" * 600)
    usage = shutil.disk_usage(tmp_path)._replace(free=400)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    schedule.check_disk(tmp_path, 333)
    with pytest.raises(UsageError, match="its disk has 1000 B for them"):
        schedule.check_disk(tmp_path, 334)
