"""Wall seconds by phase."""

import contextlib
import time
from collections.abc import Iterator


class Timer:
    """Sums wall seconds of named phases.

    Phases overlap where the device works while programs execute, so they may add up to more than
    the whole took.
    """

    def __init__(self, *phases: str):
        self.seconds = dict.fromkeys(phases, 0.0)

    def add(self, phase: str, seconds: float) -> None:
        """Adds to a phase that was timed elsewhere."""
        self.seconds[phase] += seconds

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - started)
