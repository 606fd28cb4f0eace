"""Kinds of faults: where a run lives that one hits, what it does, and what is expected after it."""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from benchmarks import chaos_runs
from benchmarks.chaos_runs import Host
from etpo_jax.devices import host_link

_MAX_SPARE_BYTES = 3 << 20  # what a full disk may still have, so that any write may be the first
_DISK = "size=96M"
_IMAGE_BYTES = 256 << 20

Rng = random.Random


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
      name: what the table calls it.
      strike: does it to the processes of a run in a folder.
      codes: exit codes that are right after it.
      num_hosts: number of processes of the run.
      flags: settings beside those of all runs.
      may_lose: updates of the log that the checkpoint behind it may lack.
      is_reported: the last line of every surviving process names the fault.
      place: context that puts a copy of the run on a file system of its own, and what is left of
        it back at the end; yields the path.
      obstacle: why this machine cannot do it; empty where it can.
    """

    name: str
    strike: Callable[[Sequence[Host], Path, Rng], None]
    codes: frozenset[int]
    num_hosts: int = 1
    flags: tuple[str, ...] = ()
    may_lose: int = 1
    is_reported: bool = False
    place: Callable[[Path], AbstractContextManager[Path]] = contextlib.nullcontext
    obstacle: Callable[[], str] = lambda: ""


def _kill_trainer(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    rng.choice(hosts).process.kill()


def _terminate(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    rng.choice(hosts).process.terminate()


def _kill_group(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    chaos_runs.kill_all(hosts)


def _kill_worker(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    """Kills one process that executes programs, as soon as there is one."""
    (host,) = hosts
    while not (below := host.below()) and host.process.poll() is None:
        time.sleep(0.01)
    if below:
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(below).kill()


def _limit_files(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    """From now on a write behind a seeded place of any file fails."""
    (host,) = hosts
    limit = rng.randrange(64 << 10)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (limit, limit))


def _fill_disk(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    """Leaves a seeded number of bytes."""
    usage = shutil.disk_usage(path.parent)
    with contextlib.suppress(OSError), open(path.parent / "filler", "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, max(1, usage.free - rng.randrange(_MAX_SPARE_BYTES)))


def _cut_power(hosts: Sequence[Host], path: Path, rng: Rng) -> None:
    """Keeps the disk as it is at this instant: what the kernel has not written yet is lost."""
    for host in hosts:
        with contextlib.suppress(ProcessLookupError):  # it has ended just now
            os.killpg(host.process.pid, signal.SIGSTOP)
    mount_point = path.parent
    cut = mount_point.with_name("cut.img")
    _call("cp", "--sparse=always", str(mount_point.with_name("disk.img")), str(cut))
    chaos_runs.kill_all(hosts)


@contextlib.contextmanager
def _small_disk(home: Path) -> Iterator[Path]:
    """A disk in memory, from which a filler is removed before the run is copied back."""
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        _call("mount", "-t", "tmpfs", "-o", _DISK, "tmpfs", folder)
        try:
            path = Path(folder) / "run"
            _move(home, path)
            yield path
            (Path(folder) / "filler").unlink(missing_ok=True)
            _move(path, home)
        finally:
            _unmount(folder)


@contextlib.contextmanager
def _disk_with_power(home: Path) -> Iterator[Path]:
    """A file system on a file; if a copy of that was made, the run comes back from the copy."""
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        image, cut, disk = (Path(folder) / name for name in ("disk.img", "cut.img", "disk"))
        disk.mkdir()
        with open(image, "wb") as file:
            file.truncate(_IMAGE_BYTES)
        _call("mkfs.ext4", "-q", "-F", str(image))
        _call("mount", "-o", "loop", str(image), str(disk))
        try:
            _move(home, disk / "run")
            os.sync()
            yield disk / "run"
        finally:
            _unmount(disk)
        with _mounted(cut if cut.exists() else image, disk):
            _move(disk / "run", home)


@contextlib.contextmanager
def _mounted(image: Path, disk: Path) -> Iterator[None]:
    _call("mount", "-o", "loop", str(image), str(disk))
    try:
        yield
    finally:
        _unmount(disk)


def _move(source: Path, target: Path) -> None:
    """A copy in place of what the target held; a missing source leaves none."""
    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target)


def _unmount(folder: Path | str) -> None:
    for _ in range(50):  # a killed process may hold a file for a moment
        if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
            time.sleep(0.2)
        else:
            return
    _call("umount", "-l", str(folder))


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _obstacle_to_mount(*programs: str) -> str:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    return "" if os.geteuid() == 0 else "only root may mount"


def _obstacle_to_disk() -> str:
    if reason := _obstacle_to_mount("mount"):
        return reason
    with tempfile.TemporaryDirectory() as folder:
        return _attempt(lambda: _small_disk(Path(folder) / "run"))


def _obstacle_to_power() -> str:
    if reason := _obstacle_to_mount("mount", "mkfs.ext4"):
        return reason
    with tempfile.TemporaryDirectory() as folder:
        return _attempt(lambda: _disk_with_power(Path(folder) / "run"))


def _attempt(place: Callable[[], AbstractContextManager[Path]]) -> str:
    try:
        with place():
            return ""
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]}: {error.stderr.decode(errors='replace').strip().splitlines()[-1]}"


_KILLED, _TERMINATED = frozenset({-signal.SIGKILL}), 128 + signal.SIGTERM
# Programs are executed, and not read from the rewards of earlier runs.
_EXECUTES = ("--reward_cache=off",)
_TWO_HOSTS = ("--dataset=toy",)

KINDS = (
    Kind("SIGKILL of the trainer", _kill_trainer, _KILLED),
    Kind("SIGKILL of the whole group", _kill_group, _KILLED),
    Kind("SIGKILL of a worker", _kill_worker, frozenset({0}), flags=_EXECUTES),
    # Before the first line, SIGTERM ends a process as it ends any other.
    Kind("SIGTERM", _terminate, frozenset({_TERMINATED, -signal.SIGTERM}), may_lose=0),
    Kind(
        "disk full",
        _fill_disk,
        frozenset({2}),
        is_reported=True,
        place=_small_disk,
        obstacle=_obstacle_to_disk,
    ),
    Kind("limit on the size of files", _limit_files, frozenset({2}), is_reported=True),
    Kind("power cut", _cut_power, _KILLED, place=_disk_with_power, obstacle=_obstacle_to_power),
    Kind(
        "SIGKILL of one of two hosts",
        _kill_trainer,
        _KILLED | {host_link.EXIT_CODE},
        num_hosts=2,
        flags=_TWO_HOSTS,
        is_reported=True,
    ),
    Kind(
        "SIGTERM to one of two hosts",
        _terminate,
        frozenset({_TERMINATED}),
        num_hosts=2,
        flags=_TWO_HOSTS,
        may_lose=0,
    ),
)
