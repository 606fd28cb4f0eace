"""The trusted side's handle on a cell: the process in which one split of one program runs."""

import collections
import itertools
import socket
from collections.abc import Iterable

from env import wire
from env.zygote import Zygote

_READ_BYTES = 1 << 16
_BUFFERS_PER_CALL = 64


class CellClosedError(Exception):
    """The cell closed its end of the connection: it ended, or its program did that to it."""


class Cell:
    """A forked process that waits for a program, or runs one; nothing here ever blocks.

    Attributes:
      zygote, cell_id: whose cell it is, and its name there.
      sock: the connection; the cell holds the only other end.
      started_at: when it was given the program.
      has_fitted: whether `build_model` has returned.
      ending_at: set once it has closed its end; it should have been reaped by then.
    """

    def __init__(
        self, zygote: Zygote, cell_id: int, sock: socket.socket, max_prediction_bytes: int
    ):
        self.zygote = zygote
        self.cell_id = cell_id
        self.sock = sock
        self.started_at = 0.0
        self.ending_at: float | None = None
        self.has_fitted = False
        self._outgoing: collections.deque[memoryview] = collections.deque()
        self._reader = wire.FrameReader(
            {
                wire.FITTED: 0,
                wire.ERROR: wire.MAX_ERROR_BYTES,
                wire.PREDICTIONS: max_prediction_bytes,
            }
        )

    def send(self, buffers: Iterable[memoryview]) -> None:
        """Sends what the connection takes now and keeps the rest for `flush`.

        Raises:
          CellClosedError: when the cell does not listen any more.
        """
        self._outgoing.extend(buffers)
        self.flush()

    def flush(self) -> None:
        """Goes on sending; raises as `send`."""
        while self._outgoing:
            buffers = list(itertools.islice(self._outgoing, _BUFFERS_PER_CALL))
            try:
                sent = self.sock.sendmsg(buffers)
            except BlockingIOError:
                return
            except OSError as error:
                raise CellClosedError(str(error)) from None
            while sent:
                first = self._outgoing[0]
                if sent < len(first):
                    self._outgoing[0] = first[sent:]
                    break
                sent -= len(self._outgoing.popleft())

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` is wanted when the connection takes more."""
        return bool(self._outgoing)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """The frames that are complete, `(kind, payload)`.

        Raises:
          CellClosedError: at the end of the stream.
          wire.WireError: for bytes that no cell of ours would send.
        """
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise CellClosedError(str(error)) from None
        if not data:
            raise CellClosedError("end of stream")
        return list(self._reader.feed(data))
