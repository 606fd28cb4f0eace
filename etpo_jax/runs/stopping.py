"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

NOTICE = "Stopping after this update, with a checkpoint; Ctrl-C again stops at once."


class StopSignals:
    """Context that notes the first SIGINT or SIGTERM; a second one acts at once.

    Outside this context SIGTERM kills a process that has started jax, and Ctrl-C interrupts an
    update.

    Args:
      notice: line that the first signal prints on standard error; "" prints nothing.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, notice: str = NOTICE) -> None:
        self._notice = notice
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def is_stopped(self) -> bool:
        """True once a signal has arrived."""
        return self.received is not None

    def share(self, exchange: Callable[[int], list[int]]) -> None:
        """Takes over a signal that another host has received; a collective of all hosts."""
        if number := max(exchange(int(self.received or 0))):
            self.received = signal.Signals(number)

    def __enter__(self) -> "StopSignals":
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        self._restore()
        # A signal may come while another line is written, which `print` does not survive.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._notice}\n".encode() if self._notice else b"")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
