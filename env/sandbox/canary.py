"""A harmless program that tries everything that is forbidden, to prove that the walls stand.

It runs as a generated program would, behind the same walls. No attempt does harm if it succeeds.
"""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable

from env.sandbox import libc

_DENIED = frozenset({errno.EPERM, errno.EACCES})
_MISSING = "/nonexistent-canary"
_IPC_CREAT_PRIVATE = 0o1600


def _read() -> None:
    with open(sys.executable, "rb"):
        pass


def _list() -> None:
    os.listdir("/")


def _write() -> None:
    # A file without a name: nothing is left behind.
    os.close(os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, 0o600))


def _change_mode() -> None:
    os.chmod(_MISSING, 0o600)


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _execute() -> None:
    os.execv(_MISSING, [_MISSING])


def _internet() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _datagram() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _local_socket() -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()


def _signal() -> None:
    os.kill(os.getppid(), 0)


def _read_memory() -> None:
    # Reading zero bytes is permitted or refused as any other read; attaching would stop the zygote.
    libc.call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0)


def _memory_file() -> None:
    os.close(os.memfd_create("canary"))


def _shared_memory() -> None:
    libc.call("shmget", 0, 4096, _IPC_CREAT_PRIVATE)


FORBIDDEN: dict[str, Callable[[], None]] = {
    "read a file": _read,
    "list a folder": _list,
    "write a file": _write,
    "change the mode of a file": _change_mode,
    "start a process": _fork,
    "execute a program": _execute,
    "open a TCP socket": _internet,
    "open a UDP socket": _datagram,
    "open a Unix socket": _local_socket,
    "send a signal": _signal,
    "read the memory of a process": _read_memory,
    "make a memory file": _memory_file,
    "make shared memory": _shared_memory,
}


def succeeded() -> list[str]:
    """Returns the names of the forbidden actions that were not plainly refused here."""
    return [name for name, attempt in FORBIDDEN.items() if not _is_denied(attempt)]


def _is_denied(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError as error:
        return error.errno in _DENIED
    return False


def failed() -> list[str]:
    """Returns the actions that every program may take but that are impossible here."""
    done = threading.Event()
    try:
        thread = threading.Thread(target=done.set)
        thread.start()
        thread.join()
        os.urandom(8)
        os.getpid()
    except (OSError, RuntimeError) as error:
        return [f"start a thread ({error})"]
    return []
