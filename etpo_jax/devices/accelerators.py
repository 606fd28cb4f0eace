"""Accelerators by name, with the memory that programs may fill on one of them."""

import dataclasses
import re

from env.base import UsageError

GPU_MEMORY_FRACTION = 0.92
"""Share of a GPU's memory that launch scripts let JAX take (XLA_PYTHON_CLIENT_MEM_FRACTION).

JAX's own default is 0.75. The rest is for the driver's context and the libraries' workspaces.
"""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Attributes:
      name: value of `--device`.
      num_bytes: memory that programs may fill: on GPUs `GPU_MEMORY_FRACTION` of what the driver
        reports, on TPUs the limit that their compiler enforces.
    """

    name: str
    num_bytes: int


def _gpu(name: str, mebibytes: int) -> Accelerator:
    return Accelerator(name, int(GPU_MEMORY_FRACTION * mebibytes * 2**20))


def _tpu(name: str, gibibytes: float) -> Accelerator:
    return Accelerator(name, int(gibibytes * 2**30))


ACCELERATORS = {
    device.name: device
    for device in (
        _gpu("h200", 143_771),
        _gpu("h100", 81_559),
        _gpu("b200", 182_642),
        _gpu("a100-80", 81_920),
        _gpu("a100-40", 40_960),
        _tpu("v4", 30.75),
        _tpu("v5e", 15.75),
        _tpu("v5p", 95.74),
        _tpu("v6e", 31.25),
    )
}


def find(name: str) -> Accelerator:
    """The accelerator with this name.

    Raises:
      UsageError: there is none; the message lists the names.
    """
    if name not in ACCELERATORS:
        raise UsageError(f"--device={name}: must be one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


def of_kind(kind: str) -> Accelerator | None:
    """The accelerator with this `device_kind` of JAX, such as "NVIDIA H200"; None if unknown."""
    for pattern, name in _KINDS:
        if re.search(pattern, kind):
            return ACCELERATORS[name]
    return None


# Patterns of JAX's names for devices; the first one found counts.
_KINDS = (
    ("H200", "h200"),
    ("H100", "h100"),
    ("B200", "b200"),
    ("A100.*80GB", "a100-80"),
    ("A100", "a100-40"),
    ("TPU v4$", "v4"),
    ("TPU v5 ?(lite|e)", "v5e"),
    ("TPU v5p?$", "v5p"),
    ("TPU v6 ?(lite|e)", "v6e"),
)
