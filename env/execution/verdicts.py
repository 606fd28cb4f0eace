"""Errors that programs are told when they fail or end without a result."""

import signal

from env.execution.error_text import clean_error
from env.execution.zygote import CellEnded
from env.sandbox.limits import Limits

FORGED = "RuntimeError: the program touched the connection that carries its results"
ENDED_WORKER = "SystemError: the program ended its worker process"
KILLED = "MemoryError: the program was killed for using too much memory"
STOPPED = "TimeoutError: the process of the program was stopped each time that it was run"


def of_error(payload: bytes) -> str:
    """Returns `Type: message` for the ERROR payload of a cell."""
    name, _, message = payload.decode(errors="replace").partition("\n")
    if not name.isidentifier():
        name = "Exception"
    return clean_error(f"{name}: {message}".strip(": \n"))


def too_slow(limits: Limits) -> str:
    return f"TimeoutError: the program took longer than {limits.timeout_s:g} s on one split"


def of_death(death: CellEnded, cpu_s: int) -> str:
    """Returns the error of a program that ended its process without a result."""
    if death.exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"TimeoutError: the program used more than {cpu_s} s of processor time on one split"
    if death.exit_code < 0:
        name = signal.Signals(-death.exit_code).name
        return f"SystemError: the program crashed with {name}"
    return f"SystemExit: the program ended its process with exit code {death.exit_code}"
