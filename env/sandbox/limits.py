"""What one program may use; kept by the operating system, not by the program's own process."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on each of the processes, one per split, that an execution consists of.

    Attributes:
      timeout_s: wall-clock seconds, from the moment when the process is given the program.
      cpu_s: processor seconds, a whole number. Less than `timeout_s`, so that a busy program meets
        the limit that does not depend on how loaded the machine is.
      memory_bytes: memory, on top of what the libraries take.
      max_threads: threads beside the first.
      max_output_bytes: what may be printed; nothing of it is kept.
    """

    timeout_s: float
    cpu_s: int
    memory_bytes: int
    max_threads: int = 32
    max_output_bytes: int = 1 << 24

    @classmethod
    def of(
        cls,
        *,
        timeout_s: float,
        memory_bytes: int,
        cpu_s: int | None,
        max_threads: int,
        max_output_bytes: int,
    ) -> "Limits":
        """Checks each value; `cpu_s` None is half of `timeout_s`, at least 1.

        Raises:
          ValueError: naming field, value and range.
        """
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s is {timeout_s} and must be above 0")
        if cpu_s is None:
            cpu_s = max(1, math.ceil(timeout_s / 2))
        for name, value, low in (
            ("cpu_s", cpu_s, 1),
            ("memory_bytes", memory_bytes, 16 * 2**20),
            ("max_threads", max_threads, 0),
            ("max_output_bytes", max_output_bytes, 0),
        ):
            if value < low:
                raise ValueError(f"{name} is {value} and must be at least {low}")
        return cls(timeout_s, cpu_s, memory_bytes, max_threads, max_output_bytes)
