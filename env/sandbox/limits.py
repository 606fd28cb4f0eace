"""Resource limits of one execution, which the operating system enforces."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of each process of an execution; an execution has one process per split.

    Attributes:
      timeout_s: wall-clock seconds from the moment when the process is given the program.
      cpu_s: processor seconds; None is half of `timeout_s`, rounded up. Less than `timeout_s`, so
        that a busy program meets the limit that does not depend on the load of the machine.
      memory_bytes: memory on top of what the libraries take.
      max_threads: threads beside the first.
      max_output_bytes: bytes that may be printed; nothing of what is printed is kept.

    Raises:
      ValueError: naming field, value and range.
    """

    timeout_s: float = 10.0
    cpu_s: int | None = None
    memory_bytes: int = 1 << 30
    max_threads: int = 32
    max_output_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s is {self.timeout_s} and must be above 0")
        for name, low in (
            ("cpu_s", 1),
            ("memory_bytes", 16 * 2**20),
            ("max_threads", 0),
            ("max_output_bytes", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} is {value} and must be at least {low}")

    @property
    def processor_s(self) -> int:
        """Processor seconds that are enforced: `cpu_s`, or its default."""
        return math.ceil(self.timeout_s / 2) if self.cpu_s is None else self.cpu_s
