"""Standard output and error of a cell: printed bytes are counted and dropped."""

import contextlib
import io
import sys
from typing import Any


class Output:
    """Standard output and error of a cell together, prepared in the zygote.

    The limit is no wall: the descriptors themselves lead to `/dev/null`, and what C code writes to
    them is not counted.

    Args:
      max_bytes: bytes that a program may print; beyond them, printing raises.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._streams = [
            io.TextIOWrapper(
                io.BufferedWriter(_Drain(self, descriptor)),
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=descriptor == 2,
            )
            for descriptor in (1, 2)
        ]

    def redirect(self) -> None:
        """Replaces the standard streams of Python by this object's."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc]

    def count(self, num_bytes: int) -> None:
        """Adds printed bytes to the count; raises OSError beyond the limit."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise OSError(f"the program printed more than {self._max_bytes} bytes")

    def check(self) -> None:
        """Raises OSError when too much was printed, even if the program caught that error."""
        for stream in self._streams:
            with contextlib.suppress(ValueError):  # the program closed or detached the stream
                stream.flush()
        self.count(0)


class _Drain(io.RawIOBase):
    """A raw stream that counts what is written to it."""

    def __init__(self, output: Output, descriptor: int):
        self._output = output
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        num_bytes = memoryview(data).nbytes
        self._output.count(num_bytes)
        return num_bytes
