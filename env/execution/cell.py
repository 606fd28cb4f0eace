"""The trusted side's handle on a cell: the process in which one split of one program runs."""

import collections
import itertools
import socket
from collections.abc import Iterable, Iterator

from env.sandbox import wire

_READ_BYTES = 1 << 16
_BUFFERS_PER_CALL = 64


class CellClosedError(Exception):
    """The cell closed its end of the connection: its process ended, or its program closed it."""


class Cell:
    """A forked process that waits for a program or runs one; no method blocks.

    Args:
      cell_id: number that the zygote gave the cell.
      inner_pid: process id of the cell as the zygote sees it.
      sock: connection to the cell, which holds the only other end.
      max_prediction_bytes: size of the largest predictions that are accepted.

    Attributes:
      started_at: time at which the cell was given its program.
      has_fitted: whether the function of the program has returned.
    """

    def __init__(
        self, cell_id: int, inner_pid: int, sock: socket.socket, max_prediction_bytes: int
    ):
        self.cell_id = cell_id
        self.inner_pid = inner_pid
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
        """Sends as much as the connection takes now, and keeps the rest for the next call.

        Returns: whether something is left to send.

        Raises:
          CellClosedError: when the cell has closed the connection.
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
        """Yields the frames that are complete now as `(kind, payload)`.

        Raises:
          CellClosedError: at the end of the stream.
          wire.WireError: for bytes that the protocol does not allow.
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
