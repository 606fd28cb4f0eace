"""The filters, run by an interpreter of their instructions, for both architectures."""

import ctypes
import errno
import os
import platform
import re
from pathlib import Path

import pytest

from env.sandbox import seccomp

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711
ALLOW, KILL = "allow", "kill"


def _run(code: list[seccomp.Instruction], architecture: int, number: int, *arguments: int) -> str:
    """Answer of the filter to a system call: `allow`, `kill`, or the name of an errno."""
    words = [number, architecture, 0, 0]
    for argument in [*arguments, *[0] * (6 - len(arguments))]:
        words += [argument & 0xFFFFFFFF, argument >> 32 & 0xFFFFFFFF]
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        if operation == 0x20:
            accumulator = words[operand // 4]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            position += operand
        elif operation == 0x15:
            position += if_true if accumulator == operand else if_false
        elif operation == 0x35:
            position += if_true if accumulator >= operand else if_false
        elif operation == 0x06:
            if operand & 0xFFFF0000 == 0x00050000:
                return errno.errorcode[operand & 0xFFFF]
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}[operand]
        else:
            raise AssertionError(f"unknown operation {operation:#x}")


@pytest.fixture(params=MACHINES)
def machine(request) -> str:
    return request.param


def _ask(machine: str, rules: seccomp.Rules, name: str, *arguments: int) -> str:
    code = seccomp.program(rules, machine)
    number = seccomp.numbers({name: ()}, machine)[name]
    return _run(code, MACHINES[machine], number, *arguments)


@pytest.mark.parametrize("rules", [seccomp.ZYGOTE, seccomp.cell_rules(PID)], ids=["zygote", "cell"])
def test_nothing_but_the_listed_calls_passes(machine, rules):
    code = seccomp.program(rules, machine)
    known = {number: name for name, number in seccomp.numbers(rules, machine).items()}
    for number in [*range(1024), 0x3FFFFFFF, 0x40000000, 0x40000027, 0xFFFFFFFF]:
        answer = _run(code, MACHINES[machine], number)
        if number not in known:
            assert answer == ("ENOSYS" if number == 435 else "EPERM"), number
        elif not rules[known[number]]:
            assert answer == ALLOW, known[number]


def test_another_architecture_is_killed(machine):
    code = seccomp.program(seccomp.ZYGOTE, machine)
    others = {*MACHINES.values(), 0x40000003} - {MACHINES[machine]}  # the last is 32-bit x86
    assert {_run(code, other, 0) for other in others} == {KILL}


THREAD = 0x3D0F00  # what pthread_create asks for
FORK = 0x1200011


@pytest.mark.parametrize(
    ("call", "arguments", "zygote", "cell"),
    [
        ("clone", (THREAD,), ALLOW, ALLOW),
        ("clone", (FORK,), ALLOW, "EPERM"),
        ("clone", (0x100,), ALLOW, "EPERM"),
        ("clone", (THREAD | 0x10000000,), "EPERM", "EPERM"),  # with a user namespace
        ("clone", (FORK | 0x00020000,), "EPERM", "EPERM"),  # with a mount namespace
        ("fcntl", (1, 1), ALLOW, ALLOW),
        ("fcntl", (1, 1030), ALLOW, ALLOW),
        ("fcntl", (1, 4), "EPERM", "EPERM"),  # F_SETFL
        ("fcntl", (1, 8), "EPERM", "EPERM"),  # F_SETOWN
        ("fcntl", (1, 1033), "EPERM", "EPERM"),  # F_ADD_SEALS
        ("ioctl", (0, 0x5401), ALLOW, ALLOW),
        ("ioctl", (0, 0x5412), "EPERM", "EPERM"),  # TIOCSTI
        ("ioctl", (0, 0x5421), "EPERM", "EPERM"),  # FIONBIO
        ("mmap", (0, 4096, 3, 0x22), ALLOW, ALLOW),
        ("mmap", (0, 4096, 3, 0x40022), "EPERM", "EPERM"),  # MAP_HUGETLB
        ("prlimit64", (0, 7, 0, 1 << 40), ALLOW, ALLOW),
        ("prlimit64", (PID, 7, 0, 0), ALLOW, ALLOW),
        ("prlimit64", (0, 7, 1, 0), ALLOW, "EPERM"),
        ("prlimit64", (0, 7, 1 << 40, 0), ALLOW, "EPERM"),  # a pointer with an empty lower half
        ("prlimit64", (PID + 1, 7, 0, 0), ALLOW, "EPERM"),
        ("tgkill", (PID, PID, 6), ALLOW, ALLOW),
        ("tgkill", (PID, PID, 9), ALLOW, ALLOW),
        ("tgkill", (PID, PID, 19), ALLOW, "EPERM"),  # SIGSTOP
        ("tgkill", (PID, PID, 20), ALLOW, "EPERM"),  # SIGTSTP
        ("tgkill", (PID, PID, 19 + (1 << 32)), ALLOW, "EPERM"),  # the kernel reads an int
        ("tgkill", (PID + 1, PID + 1, 9), ALLOW, "EPERM"),
        ("kill", (1, 9), ALLOW, "EPERM"),
        ("prctl", (4, 1), ALLOW, "EPERM"),  # PR_SET_DUMPABLE
        ("prctl", (15, 1), ALLOW, ALLOW),  # PR_SET_NAME
        ("seccomp", (1, 0, 0), ALLOW, "EPERM"),
        ("sendmsg", (3,), ALLOW, "EPERM"),
        ("socketpair", (1, 1, 0), ALLOW, "EPERM"),
        ("wait4", (-1,), ALLOW, "EPERM"),
    ],
)
def test_arguments_decide(machine, call, arguments, zygote, cell):
    arguments = [argument & 0xFFFFFFFFFFFFFFFF for argument in arguments]
    assert _ask(machine, seccomp.ZYGOTE, call, *arguments) == zygote
    assert _ask(machine, seccomp.cell_rules(PID), call, *arguments) == cell


def test_a_cell_may_do_no_more_than_a_zygote(machine):
    assert set(seccomp.cell_rules(PID)) <= set(seccomp.ZYGOTE)


def test_other_machines_are_refused():
    with pytest.raises(seccomp.SeccompError, match="no table of system calls for riscv64"):
        seccomp.program(seccomp.ZYGOTE, "riscv64")


HEADERS = {
    "x86_64": ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"],
    "aarch64": ["/usr/include/asm-generic/unistd.h"],
}


def test_numbers_are_those_of_the_kernel(machine):
    headers = [Path(path) for path in HEADERS[machine] if Path(path).exists()]
    if not headers:
        pytest.skip("the headers of the kernel are not installed")
    text = headers[0].read_text()
    kernel = {
        name: int(number)
        for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)
    }
    ours = seccomp.numbers(seccomp.ZYGOTE | seccomp.cell_rules(PID), machine)
    assert {name: kernel[name] for name in ours} == ours
    # What this table says the architecture lacks, it lacks.
    assert not (set(seccomp.ZYGOTE) - set(ours)) & set(kernel)


def test_the_kernel_takes_both_filters():
    if platform.machine() not in MACHINES:
        pytest.skip("no filter for this machine")
    code = seccomp.assemble(seccomp.program(seccomp.ZYGOTE, platform.machine()))
    cell = seccomp.CellFilter(platform.machine())
    pid = os.fork()
    if pid == 0:
        answers = 0
        try:
            seccomp.install(code)
            cell.install(os.getpid())
            libc = ctypes.CDLL(None, use_errno=True)
            answers |= os.getpid() > 0
            answers |= (libc.socket(2, 1, 0) == -1 and ctypes.get_errno() == errno.EPERM) << 1
            answers |= (libc["raise"](0) == 0) << 2
        finally:
            os._exit(answers)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
