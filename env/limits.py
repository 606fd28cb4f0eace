"""What one program may use; kept by the operating system, not by the program's own process."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on an execution, and on each of the processes (one per split) that it consists of.

    Attributes:
      timeout_s: wall-clock seconds of all splits of an execution together, each counted from when
        its process receives the program; waiting in the queue is free.
      cpu_s: whole processor seconds of one split. Below a tenth of `timeout_s` with five splits, so
        that it is the processor's time, which does not depend on load, that decides.
      memory_bytes: memory of one split, on top of what the libraries take.
      max_threads: threads of one split beside its first.
    """

    timeout_s: float
    cpu_s: int
    memory_bytes: int
    max_threads: int = 32

    @classmethod
    def of(
        cls,
        *,
        timeout_s: float,
        memory_bytes: int,
        num_splits: int,
        cpu_s: int | None,
        max_threads: int,
    ) -> "Limits":
        """Checks each value; `cpu_s` None is half of an even share of `timeout_s`, at least 1.

        Raises:
          ValueError: naming field, value and range.
        """
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s is {timeout_s} and must be above 0")
        if cpu_s is None:
            cpu_s = max(1, math.ceil(timeout_s / (2 * num_splits)))
        for name, value, low in (
            ("cpu_s", cpu_s, 1),
            ("memory_bytes", memory_bytes, 16 * 2**20),
            ("max_threads", max_threads, 0),
        ):
            if value < low:
                raise ValueError(f"{name} is {value} and must be at least {low}")
        return cls(timeout_s, cpu_s, memory_bytes, max_threads)
