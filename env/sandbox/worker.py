"""The main program of a zygote, a process that has the libraries loaded and forks cells.

A cell is a process for one split of one execution. It is forked before any untrusted byte has been
read, from a zygote that never reads one: the program goes from the trusted side straight to the
cell, over a connection that only these two hold.

The trusted side (`env.execution.zygote`) starts the zygote and exchanges datagrams with it, one
letter and a payload. To the zygote: `N` fork a cell, `F` id: end that cell, `P` answer. From it:
`R` JSON: ready; `C` id and process id, with the trusted end of the cell's connection attached: a
cell has started; `X` JSON: a cell has ended; `E` errno: the fork failed; `W` text: a wall does not
stand; `P` the answer, also sent before the libraries are loaded.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import NoReturn

from env.sandbox import cell_main, wire
from env.sandbox.confinement import (
    CellWalls,
    Confinement,
    ConfinementError,
    die_with_parent,
    enclose_zygote,
)
from env.sandbox.limits import Limits
from env.sandbox.output import Output
from env.sandbox.preload import preload

CELL_ID = struct.Struct("<Q")
BIRTH = struct.Struct("<QQ")
"""Id of a cell, and its process id in the zygote's namespace."""
MAX_CONTROL_BYTES = 4096


def main() -> NoReturn:
    """Serves the control socket until it is closed.

    The last two arguments of the process are the settings (JSON: `confinement`, and `libraries` to
    load beyond the usual, or null to load none at all) and the number of the socket's descriptor.
    """
    settings = json.loads(sys.argv[-2])
    control = socket.socket(fileno=int(sys.argv[-1]))
    walls = settings["confinement"]
    confinement = Confinement(**{**walls, "limits": Limits(**walls["limits"])})
    die_with_parent()
    control.send(b"P")
    try:
        if settings["libraries"] is not None:
            preload(settings["libraries"])
        zygote = _Zygote(control, Output(confinement.limits.max_output_bytes))
        enclose_zygote(confinement)
        cell_walls = CellWalls(confinement)
    except ConfinementError as error:
        control.send(b"W" + str(error).encode())
        os._exit(1)
    except MemoryError:
        control.send(b"W" + b"there is too little memory for the libraries; see ulimit -v")
        os._exit(1)
    zygote.serve(cell_walls)


class _Zygote:
    """Forks cells on request and reports how they end."""

    def __init__(self, control: socket.socket, output: Output):
        self._control = control
        self._output = output
        self._cells: dict[int, int] = {}  # process id: cell id
        self._next_id = 0
        self._child_ended, wakeup = socket.socketpair()
        self._wakeup = wakeup
        for sock in (self._child_ended, wakeup):
            sock.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)

    def serve(self, walls: CellWalls) -> NoReturn:
        """Serves the trusted side until it is gone; every cell is enclosed by `walls`."""
        self._walls = walls
        self._send(b"R", json.dumps(self._prove()).encode())
        poll = select.poll()
        for sock in (self._control, self._child_ended):
            poll.register(sock, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._child_ended.fileno():
                    self._child_ended.recv(4096)
                else:
                    self._obey(self._control.recv(MAX_CONTROL_BYTES))
            self._reap()

    def _prove(self) -> dict[str, list[str]]:
        """Runs the canary in a cell of its own."""
        trusted, cell = socket.socketpair()
        with trusted, cell:
            pid = os.fork()
            if pid == 0:
                self._enter(cell)
                cell_main.report(cell)
            cell.close()
            with contextlib.suppress(wire.WireError):
                report = json.loads(wire.receive(trusted, wire.REPORT))
                os.waitpid(pid, 0)
                return report
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return {"possible": [], "impossible": [f"run at all (exit code {code})"]}

    def _obey(self, message: bytes) -> None:
        if message[:1] == b"N":
            self._bear()
        elif message[:1] == b"F":
            self._end(CELL_ID.unpack(message[1:])[0])
        elif message[:1] == b"P":
            self._send(b"P", b"")
        else:  # an empty message: the trusted side is gone
            for pid in self._cells:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)

    def _bear(self) -> None:
        try:
            trusted, cell = socket.socketpair()
        except OSError as error:
            self._send(b"E", str(error.errno).encode())
            return
        with trusted, cell:
            try:
                pid = os.fork()
            except OSError as error:
                self._send(b"E", str(error.errno).encode())
                return
            if pid == 0:
                self._enter(cell)
                cell_main.live(cell, self._output)
            self._cells[pid] = self._next_id
            message = b"C" + BIRTH.pack(self._next_id, pid)
            socket.send_fds(self._control, [message], [trusted.fileno()])
            self._next_id += 1

    def _enter(self, cell: socket.socket) -> None:
        """Closes everything of the zygote's in the new process and puts up the walls."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(1, 2)  # until here standard error leads to the trusted side
            for sock in (self._control, self._child_ended, self._wakeup):
                sock.close()
            os.closerange(3, cell.fileno())
            os.closerange(cell.fileno() + 1, 1024)
            self._walls.enclose()
        except BaseException:
            os._exit(1)

    def _end(self, cell_id: int) -> None:
        for pid, known in self._cells.items():
            if known == cell_id:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self._cells:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            ended = {
                "cell_id": self._cells.pop(pid),
                "exit_code": os.waitstatus_to_exitcode(status),
                "cpu_s": usage.ru_utime + usage.ru_stime,
            }
            self._send(b"X", json.dumps(ended).encode())

    def _send(self, kind: bytes, payload: bytes) -> None:
        self._control.send(kind + payload)
