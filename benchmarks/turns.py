"""Programs measured in turns, so that a busy machine slows all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Program = Callable[[], Any]
OnTimes = Callable[[str, int, float, float], None]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one call, as one entry per round."""

    cpu: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)

    def median(self, clock: str) -> float:
        """The median over rounds of the clock `cpu` or `wall`."""
        return statistics.median(getattr(self, clock))

    def ratios(self, clock: str, other: "Times") -> list[float]:
        """Seconds of another program over seconds of this one, round by round."""
        pairs = zip(getattr(self, clock), getattr(other, clock), strict=True)
        return [theirs / ours for ours, theirs in pairs]


def measure(
    programs: Mapping[str, Program],
    *,
    rounds: int,
    warm_up: int = 1,
    round_s: float = 0.0,
    on_times: OnTimes | None = None,
) -> dict[str, Times]:
    """Calls the programs in turns, each round in the reverse order of the one before.

    Args:
      programs: calls by name.
      rounds: measured rounds.
      warm_up: calls of each program before them.
      round_s: seconds for which a program is called again in each round, at least once.
      on_times: called with (name, round, CPU seconds, wall seconds) as soon as they are measured.
    """
    counts = {}
    for name, program in programs.items():
        for _ in range(warm_up):
            program()
        start = time.perf_counter()
        if round_s:
            program()
        counts[name] = max(1, round(round_s / (time.perf_counter() - start)))
    times = {name: Times() for name in programs}
    order = list(programs)
    for index in range(rounds):
        order.reverse()
        for name in order:
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(counts[name]):
                programs[name]()
            times[name].wall.append((time.perf_counter() - wall) / counts[name])
            times[name].cpu.append((time.process_time() - cpu) / counts[name])
            if on_times is not None:
                on_times(name, index, times[name].cpu[-1], times[name].wall[-1])
    return times
