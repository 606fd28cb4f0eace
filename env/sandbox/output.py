"""What a program prints: counted, then dropped."""

import contextlib
import io
import sys
from typing import Any


class Output:
    """The standard output and error of a cell, together.

    Prepared in the zygote, so that a cell has little to do. It keeps no promise of isolation: the
    descriptors themselves lead nowhere, and what C code writes to them is not counted.

    Args:
      max_bytes: what a program may print; beyond it, printing raises.
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
        """Has Python print to here."""
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc]

    def count(self, num_bytes: int) -> None:
        """So much has been printed; raises as `check`."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise OSError(f"the program printed more than {self._max_bytes} bytes")

    def check(self) -> None:
        """Raises OSError when too much was printed, also where the program went on regardless."""
        for stream in self._streams:
            with contextlib.suppress(ValueError):  # closed or taken apart by the program
                stream.flush()
        self.count(0)


class _Drain(io.RawIOBase):
    """The end of a stream."""

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
