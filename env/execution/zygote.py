"""The trusted side's handle on a zygote: a process that forks cells on request."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence

from env.sandbox import worker

CELLS_PER_ZYGOTE = 8
"""Cells of one zygote that work at the same time."""

# What the kernel attaches to messages: a descriptor, and process, user and group of the sender.
_DESCRIPTOR, _CREDENTIALS = struct.Struct("@i"), struct.Struct("@iII")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_DESCRIPTOR.size) + socket.CMSG_SPACE(_CREDENTIALS.size)
# A process that is frozen cannot be killed before it is thawed, so nobody waits for it for longer.
_MOST_WAIT_S = 0.5


class ZygoteError(Exception):
    """A zygote cannot be used, or not any more; all of its cells are dead or dying."""


class ZygoteStoppedError(ZygoteError):
    """Somebody has stopped or frozen a zygote, which no program can do behind walls."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """The zygote has loaded its libraries, and its walls stand."""


@dataclasses.dataclass(frozen=True)
class CellBorn:
    """A cell waits for a program.

    Attributes:
      inner_pid: its process id as the zygote sees it.
      sock: connection to it; None if this process had no descriptor left.
    """

    cell_id: int
    inner_pid: int
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


@dataclasses.dataclass(frozen=True)
class Answered:
    """The zygote answers `Zygote.call`, or has just started to load its libraries."""


Event = Ready | CellBorn | CellEnded | ForkFailed | Answered


class Zygote:
    """A running zygote.

    The kernel ends a zygote together with the thread that constructed it.

    Args:
      command: command line, to which the number of the control descriptor is appended.
      environment: all environment variables of the zygote.
      must_hold: whether a wall with a hole is an error.

    Attributes:
      inner_pid: process id of the zygote itself behind any wrapper, once it has sent something.

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
        # With each message the kernel then tells who has sent it: a wrapper has another process id.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.control = ours
        self.is_ready = False
        self.inner_pid: int | None = None
        self._must_hold = must_hold

    def request_cell(self) -> None:
        """Asks for one more cell; the answer is a `CellBorn` or `ForkFailed`."""
        self._command(b"N")

    def end_cell(self, cell_id: int) -> None:
        """Kills a cell if it still lives; a `CellEnded` follows."""
        self._command(b"F" + worker.CELL_ID.pack(cell_id))

    def call(self) -> None:
        """Asks for a sign of life; an `Answered` follows."""
        self._command(b"P")

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
                message, ancillary, _, _ = self.control.recvmsg(
                    worker.MAX_CONTROL_BYTES, _ANCILLARY_BYTES
                )
            except BlockingIOError:
                return
            except OSError as error:
                raise ZygoteError(str(error)) from None
            if not message:
                raise ZygoteError("the process ended")
            attached = {kind: data for _, kind, data in ancillary}
            self.inner_pid, _, _ = _CREDENTIALS.unpack(attached[socket.SCM_CREDENTIALS])
            yield self._event(message[:1], message[1:], attached)

    def _event(self, kind: bytes, payload: bytes, attached: dict[int, bytes]) -> Event:
        if kind == b"R":
            self._check(**json.loads(payload))
            self.is_ready = True
            return Ready()
        if kind == b"W":
            raise ZygoteError(payload.decode())
        if kind == b"C":
            sock = None
            if socket.SCM_RIGHTS in attached:
                (fd,) = _DESCRIPTOR.unpack(attached[socket.SCM_RIGHTS])
                sock = socket.socket(fileno=fd)
                sock.setblocking(False)
            cell_id, inner_pid = worker.BIRTH.unpack(payload)
            return CellBorn(cell_id, inner_pid, sock)
        if kind == b"X":
            return CellEnded(**json.loads(payload))
        if kind == b"P":
            return Answered()
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
        """Ends the zygote and its cells; returns what it wrote to standard error, at most 4 KB.

        A frozen zygote ends as soon as it is thawed.
        """
        self.control.close()
        # Kills the whole session: a wrapper such as bubblewrap has processes of its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_MOST_WAIT_S)
        except subprocess.TimeoutExpired:
            threading.Thread(target=self._process.wait, daemon=True).start()
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            os.set_blocking(stderr.fileno(), False)
            try:
                return os.read(stderr.fileno(), 4096).decode(errors="replace")
            except BlockingIOError:
                return ""
