"""Walls and limits that a process puts around itself before it reads anything untrusted."""

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import os
import resource
import secrets
import signal
import struct

from env.sandbox import landlock, libc, seccomp
from env.sandbox.limits import Limits

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_CLONE_THREAD = 0x10000
_CAPABILITY_VERSION_3 = 0x20080522
# Range of user ids that systemd gives to short-lived services: no file belongs to these users.
DYNAMIC_USERS = range(61184, 65520)
_NOBODY = 65534
_NICE = 5
# Limits of zygotes and cells alike.
_COMMON_LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NOFILE: 64,
}
_PRIVATE_ANONYMOUS = 0x22
_MAP_FAILED = (1 << 8 * ctypes.sizeof(ctypes.c_void_p)) - 1


class ConfinementError(Exception):
    """A wall cannot be put up on this host; the text says which and why."""


@dataclasses.dataclass(frozen=True)
class Confinement:
    """Walls and limits of a zygote and its cells.

    Attributes:
      has_landlock, has_seccomp: which walls the process puts up itself.
      max_tasks: threads and processes of the cells' user at which no cell can start another thread.
      limits: resource limits of a cell; its memory is address space beyond that of the zygote.
    """

    has_landlock: bool
    has_seccomp: bool
    max_tasks: int
    limits: Limits


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enclose_zygote(confinement: Confinement) -> None:
    """Puts up the walls around the zygote and all processes that it forks.

    Raises:
      ConfinementError: when a wall cannot be put up.
    """
    # This call fails with EINVAL in a process with several threads and does nothing in others; a
    # container may forbid it. After a fork the OpenMP runtime of a process that had threads waits
    # for them for ever.
    try:
        libc.call("unshare", _CLONE_THREAD)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfinementError("a library has started threads before the first fork") from None
    os.nice(_NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # out of memory, the kernel kills cells before the trainer
    os.chdir("/")
    os.environ.clear()
    for name, limit in _COMMON_LIMITS.items():
        resource.setrlimit(name, _at_most(name, limit))
    if not (confinement.has_landlock or confinement.has_seccomp):
        return
    _drop_privileges()
    # A change of user clears these two settings.
    die_with_parent()
    _prctl(_PR_SET_DUMPABLE, 0)
    try:
        if confinement.has_landlock:
            landlock.deny_all()
        if confinement.has_seccomp:
            rules = seccomp.program(seccomp.ZYGOTE, seccomp.machine())
            seccomp.install(seccomp.assemble(rules))
    except OSError as error:
        raise ConfinementError(error.strerror) from None


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        user = secrets.choice(DYNAMIC_USERS)  # threads are counted per user
        try:
            _become(user)
        except OSError:  # the user is not mapped into this container's user namespace
            with contextlib.suppress(OSError):
                _become(_NOBODY)
    try:
        libc.call("capset", struct.pack("=II", _CAPABILITY_VERSION_3, 0), bytes(6 * 4))
    except OSError:
        raise ConfinementError("the capabilities of this process cannot be dropped") from None


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def address_space() -> int:
    """Returns the bytes of address space in use, without `/proc`, which may be hidden."""
    c = ctypes.CDLL(None)
    c.mmap.restype = ctypes.c_void_p
    c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    page = resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 47 if hard == resource.RLIM_INFINITY else min(hard, 1 << 47)
    try:
        while high - low > page:
            middle = (low + high) // 2 // page * page
            resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
            address = c.mmap(None, page, mmap.PROT_READ, _PRIVATE_ANONYMOUS, -1, 0)
            if address == _MAP_FAILED:
                low = middle
            else:
                c.munmap(address, page)
                high = middle
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


class CellWalls:
    """Walls and limits of cells, prepared in the zygote so that a cell has little to do.

    Args:
      confinement: walls and limits of the zygote, which has been enclosed already.

    Raises:
      ConfinementError: when a limit of the shell is below what a cell is promised.
    """

    def __init__(self, confinement: Confinement):
        limits = confinement.limits
        memory, cpu_s = address_space() + limits.memory_bytes, limits.processor_s
        _check_ceiling("v", resource.RLIMIT_AS, memory, 1024, "memory_mb")
        _check_ceiling("t", resource.RLIMIT_CPU, cpu_s, 1, "cpu_s")
        self._limits = [
            (resource.RLIMIT_AS, *_at_most(resource.RLIMIT_AS, memory)),
            # The signal at the soft limit can be ignored, the one at the hard limit cannot.
            (resource.RLIMIT_CPU, *_at_most(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)),
            (resource.RLIMIT_NPROC, *_at_most(resource.RLIMIT_NPROC, confinement.max_tasks)),
        ]
        self._filter = None
        if confinement.has_seccomp:
            self._filter = seccomp.CellFilter(seccomp.machine())
        self._parent = os.getpid()

    def enclose(self) -> None:
        """Puts the walls up around this process, a cell."""
        die_with_parent()
        if os.getppid() != self._parent:  # the parent ended before `die_with_parent`
            os._exit(1)
        for name, soft, hard in self._limits:
            resource.setrlimit(name, (soft, hard))
        if self._filter is not None:
            self._filter.install(os.getpid())


def _check_ceiling(letter: str, name: int, needed: int, unit: int, setting: str) -> None:
    """Refuses less than programs are promised: their scores would depend on the shell."""
    _, ceiling = resource.getrlimit(name)
    if ceiling != resource.RLIM_INFINITY and ceiling < needed:
        raise ConfinementError(
            f"ulimit -{letter} is {ceiling // unit} and a program needs {-(-needed // unit)}: "
            f"raise it, or lower {setting} in --limits"
        )


def _at_most(name: int, soft: int, hard: int | None = None) -> tuple[int, int]:
    """Returns soft and hard limit, bounded by the hard limit that is in force."""
    hard = soft if hard is None else hard
    _, ceiling = resource.getrlimit(name)
    if ceiling == resource.RLIM_INFINITY:
        return soft, hard
    return min(soft, ceiling), min(hard, ceiling)


def _prctl(option: int, value: int) -> None:
    try:
        libc.prctl(option, value)
    except OSError as error:
        raise ConfinementError(f"prctl({option}) refused: {error.strerror}") from None
