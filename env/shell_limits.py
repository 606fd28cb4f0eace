"""Limits that a shell or a scheduler sets with `ulimit`, and what to do about low ones."""

import contextlib
import os
import resource
from pathlib import Path

from env.base import UsageError

_MIN_OPEN_FILES = 128
_MIN_ADDRESS_KIB = 2_000_000
# Letter of each limit, its number, and the bytes of the unit that `ulimit` shows it in.
_LIMITS = (
    ("v", resource.RLIMIT_AS, 1024),
    ("f", resource.RLIMIT_FSIZE, 1024),
    ("n", resource.RLIMIT_NOFILE, 1),
    ("u", resource.RLIMIT_NPROC, 1),
    ("t", resource.RLIMIT_CPU, 1),
)
_MANY = 1 << 16


def raise_soft_limits() -> None:
    """Raises what this process may raise itself: open files and sizes of files."""
    for name in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        soft, hard = resource.getrlimit(name)
        if soft != hard:
            with contextlib.suppress(OSError, ValueError):  # some systems refuse "unlimited"
                resource.setrlimit(name, (hard, hard))


def check() -> None:
    """Checks the limits that a run needs whatever it trains.

    Raises:
      UsageError: naming the limit, its value and what is needed.
    """
    raise_soft_limits()
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if open_files != resource.RLIM_INFINITY and open_files < _MIN_OPEN_FILES:
        _refuse("n", open_files, _MIN_OPEN_FILES, "open files")
    address = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address != resource.RLIM_INFINITY and address < 1024 * _MIN_ADDRESS_KIB:
        _refuse("v", address // 1024, _MIN_ADDRESS_KIB, "KiB of address space")
    tasks = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() and tasks != resource.RLIM_INFINITY:  # the kernel does not count root's
        needed = tasks_of_this_user() + 32 + 8 * (os.cpu_count() or 1)
        if tasks < needed:
            _refuse("u", tasks, needed, "processes and threads of this user")


def _refuse(letter: str, value: int, needed: int, unit: str) -> None:
    raise UsageError(
        f"ulimit -{letter} is {value}, and a run needs at least {needed} {unit}: raise it with "
        f"`ulimit -{letter} {needed}`, or ask whoever set it"
    )


def describe() -> str:
    """Limits that are set and not generous, as `ulimit -v 300000, ulimit -n 64`; may be empty."""
    found = []
    for letter, name, unit in _LIMITS:
        value = resource.getrlimit(name)[0]
        is_generous = letter in "nu" and value >= _MANY
        if value != resource.RLIM_INFINITY and not is_generous:
            found.append(f"ulimit -{letter} {value // unit}")
    return ", ".join(found)


def largest_file() -> int | None:
    """Bytes that a file may have; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def tasks_of_this_user() -> int:
    """Number of processes and threads that the user of this process has."""
    tasks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.geteuid():
                tasks += len(os.listdir(process / "task"))
        except OSError:  # it has ended, or is hidden
            continue
    return tasks
