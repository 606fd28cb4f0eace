"""Protocol between the trusted side and a cell: frames of bytes, never pickles.

A frame is one byte of kind, eight bytes of length and the payload. The trusted side refuses a frame
that is longer than its kind allows, before reading the payload.
"""

import socket
import struct
from collections.abc import Iterator

# Frames from the trusted side to a cell.
# JSON: split, function, shapes; the frames PROGRAM, TRAIN_X and TRAIN_Y follow.
JOB = b"J"
PROGRAM = b"S"  # UTF-8 source
TRAIN_X = b"X"  # float64, row-major, or a data frame as `frames` encodes it
TRAIN_Y = b"Y"  # int64 codes of classes, or float64 numbers
VALIDATION_X = b"V"  # like TRAIN_X; sent only after FITTED
# Frames from a cell to the trusted side.
FITTED = b"M"  # empty: the function of the program has returned
PREDICTIONS = b"P"  # float64: rows x classes, row-major, or one number for each row
ERROR = b"E"  # UTF-8: the type of the exception, a line feed, its message

# Frame from the canary to its zygote; JSON.
REPORT = b"R"

MAX_ERROR_BYTES = 4096
_HEADER = struct.Struct("<cQ")


class WireError(Exception):
    """The peer sent something that the protocol does not allow, or closed the connection."""


def frame(kind: bytes, *parts: bytes | memoryview) -> list[memoryview]:
    """Returns the buffers of one frame, ready for `socket.sendmsg`."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    return [memoryview(_HEADER.pack(kind, sum(view.nbytes for view in views))), *views]


def send(sock: socket.socket, kind: bytes, *parts: bytes | memoryview) -> None:
    """Sends one frame over a blocking socket."""
    for view in frame(kind, *parts):
        sock.sendall(view)


def receive(sock: socket.socket, kind: bytes) -> bytearray:
    """Returns the payload of the next frame; raises `WireError` if it is not of `kind`."""
    received, length = _HEADER.unpack(_receive_exactly(sock, _HEADER.size))
    if received != kind:
        raise WireError(f"expected a frame {kind!r}, got {received!r}")
    return _receive_exactly(sock, length)


def receive_into(sock: socket.socket, kind: bytes, buffer: memoryview) -> None:
    """Reads a frame of `kind` that fills `buffer` exactly; raises as `receive`."""
    received, length = _HEADER.unpack(_receive_exactly(sock, _HEADER.size))
    if received != kind or length != buffer.nbytes:
        raise WireError(f"expected {buffer.nbytes} bytes of {kind!r}, got {length} of {received!r}")
    _receive_into(sock, buffer)


def _receive_exactly(sock: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    _receive_into(sock, memoryview(data))
    return data


def _receive_into(sock: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = sock.recv_into(view[done:])
        if count == 0:
            raise WireError("the peer closed the connection")
        done += count


class FrameReader:
    """Cuts a stream of received bytes into frames and refuses those that are not allowed.

    Args:
      max_lengths: largest payload of each kind of frame; other kinds are refused.
    """

    def __init__(self, max_lengths: dict[bytes, int]):
        self._max_lengths = max_lengths
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields `(kind, payload)` for every frame that `data` completes.

        Raises:
          WireError: as soon as a header announces a frame that is not allowed.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if length > self._max_lengths.get(kind, -1):
                raise WireError(f"frame {kind!r} of {length} bytes is not allowed")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload
