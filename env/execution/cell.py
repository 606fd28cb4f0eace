"""The trusted side's handle on a cell: the process in which one split of one program runs."""

import collections
import itertools
import socket
from collections.abc import Iterable, Iterator

from env.sandbox import wire

_READ_BYTES = 1 << 16
_BUFFERS_PER_CALL = 64


class CellClosedError(Exception):
    """The cell closed its end of the connection: it ended, or its program did that to it."""


class Cell:
    """A forked process that waits for a program, or runs one; nothing here ever blocks.

    Args:
      cell_id: its name at the zygote.
      sock: the connection; the cell holds the only other end.
      max_prediction_bytes: the largest predictions that are accepted.

    Attributes:
      started_at: when it was given its program.
      has_fitted: whether `build_model` has returned.
    """

    def __init__(self, cell_id: int, sock: socket.socket, max_prediction_bytes: int):
        self.cell_id = cell_id
        self.sock = sock
        self.started_at = 0.0
        self.has_fitted = False
        self._outgoing: collections.deque[memoryview] = collections.deque()
        self._reader = wire.FrameReader(
            {
                wire.FITTED: 0,
                wire.ERROR: wire.MAX_ERROR_BYTES,
                wire.PREDICTIONS: max_prediction_bytes,
            }
        )

    def send(self, buffers: Iterable[memoryview] = ()) -> bool:
        """Sends what the connection takes now, and keeps the rest for the next call.

        Returns: whether something is left.

        Raises:
          CellClosedError: when the cell does not listen any more.
        """
        self._outgoing.extend(buffers)
        while self._outgoing:
            batch = list(itertools.islice(self._outgoing, _BUFFERS_PER_CALL))
            try:
                sent = self.sock.sendmsg(batch)
            except BlockingIOError:
                return True
            except OSError as error:
                raise CellClosedError(str(error)) from None
            while sent:
                first = self._outgoing[0]
                if sent < len(first):
                    self._outgoing[0] = first[sent:]
                    break
                sent -= len(self._outgoing.popleft())
        return False

    def receive(self) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are complete now, `(kind, payload)`.

        Raises:
          CellClosedError: at the end of the stream.
          wire.WireError: for bytes that no cell of ours would send.
        """
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise CellClosedError(str(error)) from None
        if not data:
            raise CellClosedError("end of the stream")
        yield from self._reader.feed(data)
