"""The trusted side's handle on a zygote: a process that forks cells on request."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from env.sandbox import worker

CELLS_PER_ZYGOTE = 8
"""Cells of one zygote that work at the same time."""


class ZygoteError(Exception):
    """A zygote cannot be used, or not any more; all of its cells are dead or dying."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """The zygote has loaded its libraries, and its walls stand."""


@dataclasses.dataclass(frozen=True)
class CellBorn:
    """A cell waits for a program; `sock` is None if this process had no descriptor left."""

    cell_id: int
    sock: socket.socket | None


@dataclasses.dataclass(frozen=True)
class CellEnded:
    """The process of a cell has ended.

    Attributes:
      exit_code: exit code, or the negative number of the signal that ended it.
      cpu_s: processor seconds that it used.
    """

    cell_id: int
    exit_code: int
    cpu_s: float


@dataclasses.dataclass(frozen=True)
class ForkFailed:
    """The operating system refused another process or descriptor."""

    errno: int


Event = Ready | CellBorn | CellEnded | ForkFailed


class Zygote:
    """A running zygote.

    The kernel ends a zygote together with the thread that constructed it.

    Args:
      command: command line, to which the number of the control descriptor is appended.
      environment: all environment variables of the zygote.
      must_hold: whether a wall with a hole is an error.

    Raises:
      OSError: when no process can be started.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, must_hold: bool = True
    ):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    env=dict(environment),
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # keeps Ctrl-C at the terminal from the zygote
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self.control = ours
        self.is_ready = False
        self._must_hold = must_hold

    def request_cell(self) -> None:
        """Asks for one more cell; the answer is a `CellBorn` or `ForkFailed`."""
        self._command(b"N")

    def end_cell(self, cell_id: int) -> None:
        """Kills a cell if it still lives; a `CellEnded` follows."""
        self._command(b"F" + worker.CELL_ID.pack(cell_id))

    def _command(self, message: bytes) -> None:
        try:
            self.control.send(message)
        except OSError as error:  # a stopped zygote lets the socket fill up
            raise ZygoteError(str(error)) from None

    def receive(self) -> Iterator[Event]:
        """Yields the events since the last call; never blocks.

        Raises:
          ZygoteError: when the zygote is gone.
        """
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.control, worker.MAX_CONTROL_BYTES, 1)
            except BlockingIOError:
                return
            except OSError as error:
                raise ZygoteError(str(error)) from None
            if not message:
                raise ZygoteError("the process ended")
            yield self._event(message[:1], message[1:], fds)

    def _event(self, kind: bytes, payload: bytes, fds: list[int]) -> Event:
        if kind == b"R":
            self._check(**json.loads(payload))
            self.is_ready = True
            return Ready()
        if kind == b"W":
            raise ZygoteError(payload.decode())
        if kind == b"C":
            sock = None
            if fds:
                sock = socket.socket(fileno=fds[0])
                sock.setblocking(False)
            return CellBorn(worker.CELL_ID.unpack(payload)[0], sock)
        if kind == b"X":
            return CellEnded(**json.loads(payload))
        return ForkFailed(int(payload))

    def _check(self, possible: list[str], impossible: list[str]) -> None:
        """Raises `ZygoteError` if the findings of the canary rule the zygote out."""
        if impossible:
            raise ZygoteError(f"a program could not {', '.join(impossible)}")
        if possible and self._must_hold:
            raise ZygoteError(f"a program could {', '.join(possible)}")

    @property
    def pid(self) -> int:
        """Process id of the zygote, or of the program that wraps it."""
        return self._process.pid

    def close(self) -> str:
        """Ends the zygote and its cells; returns what it wrote to standard error, at most 4 KB."""
        self.control.close()
        # Kills the whole session: a wrapper such as bubblewrap has processes of its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            os.set_blocking(stderr.fileno(), False)
            try:
                return os.read(stderr.fileno(), 4096).decode(errors="replace")
            except BlockingIOError:
                return ""
