"""How long a process was kept from running, as the kernel reports it in `/proc`.

A process that does not advance either chose to wait, as in `time.sleep`, or was kept from running:
it was stopped by a signal, frozen by a control group, or runnable without being given a processor.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CONTROL_GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_STOPPED = "Tt"  # by a signal, by a debugger
_ASLEEP = "SD"  # as the processes in a frozen control group look
_WITHOUT_CHOICE = "D"  # usually while a page of memory is read
_NS_PER_S = 1e9


@dataclasses.dataclass(frozen=True)
class _Thread:
    """What the kernel reports about one thread.

    Attributes:
      state: letter of the state, see proc_pid_stat(5).
      ran_ns: processor time used.
      waited_ns: time spent runnable without a processor, up to the last time that it got one.
    """

    state: str = ""
    ran_ns: int = 0
    waited_ns: int = 0


class Vitals:
    """Watches one process.

    Every method works, and reports nothing, for a process that is gone or where `/proc` is hidden.

    Args:
      pid: process id, or None if it is not known.
      now: time at which the watch begins.

    Attributes:
      stopped_s: seconds for which it has been stopped or frozen without a break until now.
      is_blind: whether the last look saw nothing.
    """

    def __init__(self, pid: int | None, now: float):
        self.stopped_s = 0.0
        self.is_blind = True
        self._pid = pid
        self._looked_at = now
        self._threads: dict[str, _Thread] = {}

    def look(self, now: float) -> float:
        """Returns the seconds since the last look during which the process was kept from running.

        A process with several threads was kept from running as long as its worst thread was. That
        thread waited while others used the processor it wanted, so a program can bring about no
        more of this time than the processor time that it is allowed.
        """
        elapsed_s, self._looked_at = now - self._looked_at, now
        before, self._threads = self._threads, dict(self._read())
        known = [(before.get(tid, _Thread()), thread) for tid, thread in self._threads.items()]
        self.is_blind = not known
        has_run = any(new.ran_ns != old.ran_ns for old, new in known)
        is_stopped = not (self.is_blind or has_run) and self._is_stopped()
        self.stopped_s = self.stopped_s + elapsed_s if is_stopped else 0.0
        if is_stopped:
            return elapsed_s
        return max((_kept_s(old, new, elapsed_s) for old, new in known), default=0.0)

    def _read(self) -> Iterator[tuple[str, _Thread]]:
        if self._pid is None:
            return
        try:
            for task in (_PROC / str(self._pid) / "task").iterdir():
                state = _fields(task / "stat")[0]
                ran_ns, waited_ns, _ = (task / "schedstat").read_text().split()
                yield task.name, _Thread(state, int(ran_ns), int(waited_ns))
        except (OSError, ValueError):  # it has ended, or this kernel does not count
            return

    def _is_stopped(self) -> bool:
        states = {thread.state for thread in self._threads.values()}
        return states <= set(_STOPPED) or (states <= set(_ASLEEP) and _is_frozen(self._pid))


def _kept_s(old: _Thread, new: _Thread, elapsed_s: float) -> float:
    ran_s = (new.ran_ns - old.ran_ns) / _NS_PER_S
    waited_s = (new.waited_ns - old.waited_ns) / _NS_PER_S
    if old.state == new.state and new.state in "R" + _WITHOUT_CHOICE and ran_s == waited_s == 0.0:
        return elapsed_s  # it still waits: the kernel counts that once it is over
    return max(0.0, min(waited_s, elapsed_s - ran_s))


def _fields(stat: Path) -> list[str]:
    """Returns the fields of a `stat` file after the name, which may hold spaces."""
    return stat.read_text().rpartition(")")[2].split()


def _is_frozen(pid: int | None) -> bool:
    """Returns whether a control group has frozen a process, in either version of control groups."""
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return False
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if not controllers and _says(f"{group}/cgroup.events", "frozen 1"):
            return True
        if controllers == "freezer" and _says(f"freezer{group}/freezer.state", "FROZEN"):
            return True
    return False


def _says(file: str, line: str) -> bool:
    for root in _CONTROL_GROUPS:
        with contextlib.suppress(OSError):
            if line in (root / file.lstrip("/")).read_text().splitlines():
                return True
    return False


def child(parent: int | None, inner_pid: int) -> int | None:
    """Returns the process id of a child, as this process sees it; None if it cannot be found.

    Args:
      parent: process id of the parent, as this process sees it.
      inner_pid: process id of the child as the parent sees it, perhaps in a namespace of its own.
    """
    if _parent(_PROC / str(inner_pid)) == str(parent):
        return inner_pid  # both see the same
    with contextlib.suppress(OSError):  # no descriptor is left
        for process in _PROC.glob("[0-9]*"):
            if _parent(process) == str(parent) and _innermost_pid(process) == str(inner_pid):
                return int(process.name)
    return None


def _parent(process: Path) -> str:
    try:
        return _fields(process / "stat")[1]
    except (OSError, IndexError):  # it has ended, or is hidden
        return ""


def _innermost_pid(process: Path) -> str:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[-1] for line in lines if line.startswith("NSpid:")), "")
