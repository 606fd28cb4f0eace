"""What an untrusted process does to itself before it reads anything: walls first, then limits."""

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import os
import resource
import secrets
import signal

from env.sandbox import landlock, seccomp
from env.sandbox.limits import Limits

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_CLONE_THREAD = 0x10000
_CAPABILITY_VERSION_3 = 0x20080522
# systemd's range for users that exist as long as a process does: no file belongs to them.
DYNAMIC_USERS = range(61184, 65520)
_NOBODY = 65534
_NICE = 5
# Of zygotes and cells alike.
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
    """A wall cannot be put up here; the text says which and why."""


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
    """Has the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enclose_zygote(confinement: Confinement) -> None:
    """Puts up the walls that hold for the zygote and for all that it forks.

    Raises:
      ConfinementError: when one of them does not stand.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Invalid in a process with several threads; does nothing otherwise, and may be forbidden. After
    # a fork the OpenMP runtime of a process that had threads waits for them for ever.
    if libc.unshare(_CLONE_THREAD) and ctypes.get_errno() == errno.EINVAL:
        raise ConfinementError("a library has started threads before the first fork")
    os.nice(_NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # sooner a cell than the trainer
    os.chdir("/")
    os.environ.clear()
    for name, limit in _COMMON_LIMITS.items():
        resource.setrlimit(name, _at_most(name, limit))
    if not (confinement.has_landlock or confinement.has_seccomp):
        return
    _drop_privileges(libc)
    # A change of user clears both.
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


def _drop_privileges(libc: ctypes.CDLL) -> None:
    if os.geteuid() == 0:
        user = secrets.choice(DYNAMIC_USERS)  # threads are counted per user
        try:
            _become(user)
        except OSError:  # not mapped into this container's user namespace
            with contextlib.suppress(OSError):
                _become(_NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise ConfinementError("the capabilities of this process cannot be dropped")


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def address_space() -> int:
    """Bytes of address space that this process uses, found without `/proc`, which may be hidden."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    page = resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 47
    try:
        while high - low > page:
            middle = (low + high) // 2 // page * page
            resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
            address = libc.mmap(None, page, mmap.PROT_READ, _PRIVATE_ANONYMOUS, -1, 0)
            if address == _MAP_FAILED:
                low = middle
            else:
                libc.munmap(address, page)
                high = middle
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


class CellWalls:
    """The walls and limits of cells, prepared in the zygote so that a cell has little to do.

    Args:
      confinement: as for the zygote, which has been enclosed.
    """

    def __init__(self, confinement: Confinement):
        limits = confinement.limits
        memory, cpu_s = address_space() + limits.memory_bytes, limits.processor_s
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
        """Puts them up, in the cell."""
        die_with_parent()
        if os.getppid() != self._parent:  # gone before the kernel knew that we depend on it
            os._exit(1)
        for name, soft, hard in self._limits:
            resource.setrlimit(name, (soft, hard))
        if self._filter is not None:
            self._filter.install(os.getpid())


def _at_most(name: int, soft: int, hard: int | None = None) -> tuple[int, int]:
    """Soft and hard limit, or what is lower already."""
    hard = soft if hard is None else hard
    _, ceiling = resource.getrlimit(name)
    if ceiling == resource.RLIM_INFINITY:
        return soft, hard
    return min(soft, ceiling), min(hard, ceiling)


_libc = ctypes.CDLL(None, use_errno=True)
_unused = [ctypes.c_ulong(0)] * 3


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), *_unused):
        raise ConfinementError(f"prctl({option}) refused: {os.strerror(ctypes.get_errno())}")
