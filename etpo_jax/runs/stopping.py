"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

import signal
from types import FrameType, TracebackType


class StopSignals:
    """Context that notes the first SIGINT or SIGTERM; a second one acts at once.

    Outside this context SIGTERM kills a process that has started jax, and Ctrl-C interrupts an
    update.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def is_stopped(self) -> bool:
        """True once a signal has arrived."""
        return self.received is not None

    def __enter__(self) -> "StopSignals":
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
