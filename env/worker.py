"""The untrusted side: a zygote that has the libraries loaded, and the cells that it forks.

A cell is a process for one split of one execution: it receives a program and a training half, fits,
receives the validation features, predicts and ends. It is forked before any untrusted byte has been
read, from a zygote that never reads one: the program goes from the trusted side straight to the
cell. Needs the standard library, numpy and scikit-learn only.

Started by `env.zygote` as `python -sP -c ... `, talking over the socket whose descriptor is given.
Control messages (one datagram each) to the zygote: `N` fork a cell, `F` + id end that cell.
From it: `R` + JSON ready, `C` + id (with the cell's socket attached), `X` + JSON a cell ended,
`E` + errno the fork failed.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from env import wire

PRELOADED = (
    "numpy",
    "scipy.cluster.hierarchy scipy.fft scipy.integrate scipy.interpolate scipy.linalg scipy.ndimage"
    " scipy.optimize scipy.signal scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial.distance"
    " scipy.special scipy.stats",
)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
CELL_ID = struct.Struct("<Q")
MAX_CONTROL_BYTES = 4096


def main() -> NoReturn:
    """Serves the control socket until it is closed; its descriptor is the last argument."""
    config, control_fd = sys.argv[-2:]
    limits = json.loads(config)
    _die_with_parent()
    _preload()
    _Zygote(socket.socket(fileno=int(control_fd)), limits).serve()


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _preload() -> None:
    gc.disable()
    import sklearn

    for name in sklearn.__all__:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"sklearn.{name}")
    gc.collect()
    gc.freeze()
    gc.enable()


class _Zygote:
    """Forks cells on request and reports how they end."""

    def __init__(self, control: socket.socket, limits: dict[str, Any]):
        self._control = control
        self._limits = limits
        self._cells: dict[int, int] = {}  # process id: cell id
        self._next_id = 0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        self._send(b"R" + json.dumps({"pid": os.getpid()}).encode())
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    os.read(self._wake_read, 512)
                else:
                    self._command(self._control.recv(MAX_CONTROL_BYTES))
            self._reap()

    def _command(self, message: bytes) -> None:
        if message[:1] == b"N":
            self._fork()
        elif message[:1] == b"F":
            self._end(CELL_ID.unpack(message[1:])[0])
        else:  # an empty message: the trusted side is gone
            for pid in self._cells:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)

    def _fork(self) -> None:
        try:
            trusted, cell = socket.socketpair()
        except OSError as error:
            self._send(b"E" + str(error.errno).encode())
            return
        with trusted, cell:
            try:
                pid = os.fork()
            except OSError as error:
                self._send(b"E" + str(error.errno).encode())
                return
            if pid == 0:
                _live(cell.detach(), self._limits)
            self._cells[pid] = self._next_id
            socket.send_fds(self._control, [b"C" + CELL_ID.pack(self._next_id)], [trusted.fileno()])
            self._next_id += 1

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
                "peak_bytes": 1024 * usage.ru_maxrss,
            }
            self._send(b"X" + json.dumps(ended).encode())

    def _send(self, message: bytes) -> None:
        self._control.send(message)


def _live(fd: int, limits: dict[str, Any]) -> NoReturn:
    """All of a cell's life. Everything up to the first frame happens before it has a program."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent()
        os.dup2(fd, 3)
        os.closerange(4, 65536)
        sock = socket.socket(fileno=3)
        _apply(limits)
        _execute(sock)
    finally:
        os._exit(0)


def _apply(limits: dict[str, Any]) -> None:
    with open("/proc/self/statm") as file:
        base = int(file.read().split()[0]) * resource.getpagesize()
    for name, soft, hard in (
        (resource.RLIMIT_AS, base + limits["memory_bytes"], base + limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 64, 64),
    ):
        resource.setrlimit(name, (soft, hard))


def _execute(sock: socket.socket) -> None:
    job = json.loads(wire.receive(sock, wire.JOB))
    source = wire.receive(sock, wire.PROGRAM).decode()
    x_train = wire.receive_array(sock, wire.TRAIN_X, (job["train_rows"], job["columns"]), float)
    y_train = wire.receive_array(sock, wire.TRAIN_Y, (job["train_rows"],), int)
    try:
        model = _fit(source, x_train, y_train, job)
        wire.send(sock, wire.FITTED)
        x = wire.receive_array(
            sock, wire.VALIDATION_X, (job["validation_rows"], job["columns"]), float
        )
        predictions = _predict(model, x, job["classes"])
        wire.send(sock, wire.PREDICTIONS, wire.array_bytes(predictions))
    except BaseException as error:
        wire.send(sock, wire.ERROR, _describe(error))


def _fit(source: str, x_train: Any, y_train: Any, job: dict[str, Any]) -> Any:
    import numpy as np

    random.seed(job["split"])
    np.random.seed(job["split"])
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
    return namespace["build_model"](x_train, y_train)


def _predict(model: Any, x: Any, num_classes: int) -> Any:
    import numpy as np

    rows = len(x)
    predictions = np.asarray(model.predict_proba(x))
    if predictions.dtype.kind not in "biuf":
        raise TypeError(f"predict_proba returned values of type {predictions.dtype}, not numbers")
    if predictions.shape != (rows, num_classes):
        raise ValueError(
            f"predict_proba returned an array of shape {predictions.shape}, "
            f"expected {(rows, num_classes)}"
        )
    return np.ascontiguousarray(predictions, np.float64)


def _describe(error: BaseException) -> bytes:
    """The exception as an ERROR payload; its own code (`__str__`) is as hostile as the program."""
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"{type(error).__name__}\n{message}"
        return text.encode("utf-8", "replace")[: wire.MAX_ERROR_BYTES]
    except BaseException:
        return b"Exception\nthe exception has no message"
