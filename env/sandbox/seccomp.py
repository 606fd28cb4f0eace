"""Filters of the system calls that an untrusted process may make (seccomp-BPF, by ctypes).

Two filters are in force. The zygote's is an allow-list that its cells inherit; a cell adds one that
forbids what only a zygote needs, above all new processes. A call that is not allowed fails with
EPERM, so that library code sees an ordinary error.

The numbers are those of Linux on x86_64 and aarch64; see seccomp(2) and, for the instructions,
Documentation/networking/filter.rst of the kernel.
"""

import ctypes
import dataclasses
import errno
import platform
import signal
import struct
from collections.abc import Iterable, Mapping

from env.sandbox import libc

_ALL = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Test:
    """A condition on one 32-bit word of a system call's arguments.

    Attributes:
      word: twice the index of the argument, plus 1 for its upper half.
      values: allowed values of the word after the mask.
      mask: the bits that are compared.
    """

    word: int
    values: tuple[int, ...]
    mask: int = _ALL


Rules = Mapping[str, tuple[Test, ...]]
"""Conditions by the name of a call; all of them must hold, and none means always."""

# Name, number on x86_64, number on aarch64; a dash where the architecture has no such call.
_NUMBER_TABLE = """
alarm 37 - | brk 12 214 | capset 126 91 | clock_getres 229 114 | clock_gettime 228 113 |
clock_nanosleep 230 115 | clone 56 220 | clone3 435 435 | close 3 57 | close_range 436 436 |
dup 32 23 | dup2 33 - | dup3 292 24 | exit 60 93 | exit_group 231 94 | fcntl 72 25 | fork 57 - |
fstat 5 80 | futex 202 98 | getcpu 309 168 | getcwd 79 17 | getegid 108 177 | geteuid 107 175 |
getgid 104 176 | getgroups 115 158 | getitimer 36 102 | getpid 39 172 | getppid 110 173 |
getrandom 318 278 | getresgid 120 150 | getresuid 118 148 | getrlimit 97 163 | getrusage 98 165 |
getsockname 51 204 | getsockopt 55 209 | gettid 186 178 | gettimeofday 96 169 | getuid 102 174 |
ioctl 16 29 | kill 62 129 | lseek 8 62 | madvise 28 233 | mmap 9 222 | mprotect 10 226 |
mremap 25 216 | munmap 11 215 | nanosleep 35 101 | pause 34 - | poll 7 - | ppoll 271 73 |
prctl 157 167 | pread64 17 67 | prlimit64 302 261 | pselect6 270 72 | pwrite64 18 68 | read 0 63 |
readv 19 65 | recvfrom 45 207 | recvmsg 47 212 | restart_syscall 219 128 | rseq 334 293 |
rt_sigaction 13 134 | rt_sigprocmask 14 135 | rt_sigreturn 15 139 |
sched_get_priority_max 146 125 | sched_get_priority_min 147 126 | sched_getaffinity 204 123 |
sched_getparam 143 121 | sched_getscheduler 145 120 | sched_yield 24 124 | seccomp 317 277 |
select 23 - | sendmsg 46 211 | sendto 44 206 | set_robust_list 273 99 | set_tid_address 218 96 |
setitimer 38 103 | setrlimit 160 164 | sigaltstack 131 132 | socketpair 53 199 | tgkill 234 131 |
time 201 - | times 100 153 | uname 63 160 | vfork 58 - | wait4 61 260 | write 1 64 | writev 20 66
"""
_NUMBERS: dict[str, tuple[int | None, ...]] = {
    name: tuple(None if number == "-" else int(number) for number in numbers)
    for name, *numbers in map(str.split, _NUMBER_TABLE.split("|"))
}

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 1030
_TCGETS, _FIONREAD, _TIOCGWINSZ = 0x5401, 0x541B, 0x5413
_MAP_HUGETLB = 0x40000
_PR_SET_NAME, _PR_GET_NAME = 15, 16  # some versions of Python name their threads
_CLONE_THREAD = 0x10000
_UNSTOPPING = tuple({*range(65)} - {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_CLONE_NAMESPACES = 0x7E020000  # new mount, cgroup, uts, ipc, user, pid, net namespace

# Calls that numeric Python code needs once everything is imported. Left out on purpose are, among
# others, all calls that take a path, sockets, other processes, shared memory, locks and sizes of
# files, and each `fcntl` and `ioctl` that changes what other cells see of an inherited descriptor.
_ALWAYS = """
alarm brk clock_getres clock_gettime clock_nanosleep close close_range dup dup2 dup3 exit
exit_group fstat futex getcpu getcwd getegid geteuid getgid getgroups getitimer getpid getppid
getrandom getresgid getresuid getrlimit getrusage gettid gettimeofday getuid lseek madvise
mprotect mremap munmap nanosleep pause poll ppoll pread64 pselect6 pwrite64 read readv recvfrom
restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler sched_yield select
sendto set_robust_list set_tid_address setitimer sigaltstack time times uname write writev
"""
_COMPUTE: Rules = {
    **dict.fromkeys(_ALWAYS.split(), ()),
    "fcntl": (Test(2, (_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC)),),
    "ioctl": (Test(2, (_TCGETS, _FIONREAD, _TIOCGWINSZ)),),
    "mmap": (Test(6, (0,), _MAP_HUGETLB),),
    "prctl": (Test(0, (_PR_SET_NAME, _PR_GET_NAME)),),
}

ZYGOTE: Rules = {
    **_COMPUTE,
    "capset": (),
    "clone": (Test(0, (0,), _CLONE_NAMESPACES),),
    "fork": (),
    "getsockname": (),
    "getsockopt": (),
    "kill": (),
    "prctl": (),
    "prlimit64": (),
    "recvmsg": (),
    "seccomp": (),
    "sendmsg": (),
    "setrlimit": (),
    "socketpair": (),
    "tgkill": (),
    "wait4": (),
}
"""Calls that a zygote may make after it has loaded its libraries."""


def cell_rules(pid: int) -> Rules:
    """Returns the rules of a cell with this process id."""
    return {
        **_COMPUTE,
        "clone": (Test(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NAMESPACES),),
        "prlimit64": (Test(0, (0, pid)), Test(4, (0,)), Test(5, (0,))),  # reading its own limits
        # `abort` and `raise`, but for the signals that stop: what is stopped was so from outside.
        "tgkill": (Test(0, (pid,)), Test(4, _UNSTOPPING)),
    }


def numbers(rules: Rules, machine: str) -> dict[str, int]:
    """Returns the numbers of the calls in `rules`; raises as `program`."""
    column, _ = _architecture(machine)
    found = {name: _NUMBERS[name][column] for name in rules}
    return {name: number for name, number in found.items() if number is not None}


# Calls that fail as if the kernel did not know them: glibc then uses `clone`, whose flags a filter
# can read.
_UNKNOWN = ("clone3",)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # numbers of x86_64's other calling convention start here

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, operand."""

_PERMIT: list[Instruction] = [(_RETURN, 0, 0, _ALLOW)]
_REFUSE: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
_DISOWN: list[Instruction] = [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]


class SeccompError(OSError):
    """The kernel refuses a filter, or the architecture has no table of numbers here."""


def program(rules: Rules, machine: str) -> list[Instruction]:
    """Returns the filter that allows the calls in `rules` and no others.

    Args:
      rules: allowed calls; those that the architecture lacks are ignored.
      machine: `x86_64` or `aarch64`.

    Raises:
      SeccompError: for another machine.
    """
    column, architecture = _architecture(machine)
    actions = {
        number: _conditional(rules[name]) for name, number in numbers(rules, machine).items()
    }
    for name in _UNKNOWN:
        number = _NUMBERS[name][column]
        if number is not None:
            actions[number] = _DISOWN
    starts: dict[int, list[Instruction]] = {0: _REFUSE}
    for number, action in sorted(actions.items()):
        starts[number] = action
        starts[number + 1] = actions.get(number + 1, _REFUSE)
    starts[_X32] = _REFUSE
    return [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        *_search(_merge(sorted(starts.items()))),
    ]


def _architecture(machine: str) -> tuple[int, int]:
    if machine not in _ARCHITECTURES:
        raise SeccompError(errno.ENOSYS, f"no table of system calls for {machine}")
    return _ARCHITECTURES[machine]


def _conditional(tests: Iterable[Test]) -> list[Instruction]:
    code: list[Instruction] = []
    for test in tests:
        code.append((_LOAD, 0, 0, _OFFSET_ARGUMENTS + 4 * test.word))
        if test.mask != _ALL:
            code.append((_AND, 0, 0, test.mask))
        # On the last value fall through to the next test, or over one refusal.
        for position, value in enumerate(test.values):
            code.append((_JUMP_EQUAL, len(test.values) - position, 0, value))
        code += _REFUSE
    return code + _PERMIT


def _merge(
    starts: list[tuple[int, list[Instruction]]],
) -> list[tuple[int, list[Instruction]]]:
    """Joins neighbouring ranges of numbers that have the same action."""
    merged = starts[:1]
    for start, action in starts[1:]:
        if action != merged[-1][1]:
            merged.append((start, action))
    return merged


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Returns a binary search for the range that holds the number in the accumulator.

    The kernel runs a filter once per system call number when it is installed, so that a linear
    chain would cost each cell a millisecond.
    """
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    # A conditional jump reaches 255 instructions only, an unconditional one everywhere.
    return [
        (_JUMP_AT_LEAST, 0, 1, ranges[middle][0]),
        (_JUMP, 0, 0, len(lower)),
        *lower,
        *upper,
    ]


_PR_SET_SECCOMP = 22
_MODE_FILTER = 2


def assemble(instructions: Iterable[Instruction]) -> bytes:
    """Returns the filter as the kernel reads it, an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def install(code: bytes) -> None:
    """Puts a filter on the calling thread and all that it will start, for good.

    Raises:
      SeccompError: when the kernel refuses.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a count, padding, a pointer.
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    try:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header)
    except OSError as error:
        raise SeccompError(error.errno, f"seccomp filter refused: {error.strerror}") from None


class CellFilter:
    """The filter of cells, assembled once; each cell inserts its own process id."""

    _PLACEHOLDER = 0x5EC0FDB1

    def __init__(self, machine: str):
        self._code = assemble(program(cell_rules(self._PLACEHOLDER), machine))

    def install(self, pid: int) -> None:
        """Puts the filter on the calling process, whose id is `pid`; raises as `install`."""
        placeholder, own = struct.pack("=I", self._PLACEHOLDER), struct.pack("=I", pid)
        install(self._code.replace(placeholder, own))


def machine() -> str:
    """Returns the architecture of this process."""
    return platform.machine()
