"""Accelerators by name, with the memory that programs may fill on one of them."""

import dataclasses
import math
import os
import re

import jax

from env.base import UsageError

FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""Environment variable with the share of a GPU's memory that JAX takes when it starts."""
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", FRACTION)
"""Names of the variable in newer and in older versions of JAX."""
_DEFAULT_FRACTION = 0.75
_LARGEST_FRACTION = 0.95
"""The rest is for the driver's context and the libraries' workspaces."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of device.

    Attributes:
      name: value of `--device`.
      num_bytes: memory of a GPU as its driver reports it, or the limit that a TPU's compiler
        enforces.
      is_gpu: whether JAX takes only a share of the memory.
    """

    name: str
    num_bytes: int
    is_gpu: bool = False

    @property
    def platform(self) -> str:
        """The kind of device for `etpo_jax.devices.memory`."""
        return "gpu" if self.is_gpu else "tpu"


@dataclasses.dataclass(frozen=True)
class Limit:
    """Memory that programs may fill on one device.

    Attributes:
      device: the device.
      num_bytes: the memory.
      source: what the number follows from, for the plan.
    """

    device: Accelerator
    num_bytes: int
    source: str

    def verdict(self, peak: int) -> str:
        """Whether a run with this peak fits, in words."""
        free = self.num_bytes - peak
        text = f"{self.device.name}: {gib(self.num_bytes)}{self.source}; "
        if free >= 0:
            return f"{text}fits, {gib(free)} are left"
        text += f"does not fit, {gib(-free)} short"
        fraction = self.device.is_gpu and needed_fraction(self.device, peak)
        return f"{text}; {FRACTION}={fraction:.2f} would be enough" if fraction else text


def stated_limit(device: Accelerator) -> Limit:
    """The memory of a device that need not be here, by the share that the environment states.

    Raises:
      UsageError: the environment states something that is no share.
    """
    if not device.is_gpu:
        return Limit(device, device.num_bytes, "")
    name = next((name for name in FRACTIONS if os.environ.get(name)), "")
    if not name:
        source = f" by JAX's share of {_DEFAULT_FRACTION}"
        return Limit(device, int(_DEFAULT_FRACTION * device.num_bytes), source)
    try:
        fraction = float(os.environ[name])
    except ValueError:
        fraction = math.nan
    if not 0 < fraction < math.inf:
        raise UsageError(f"{name}={os.environ[name]}: must be a number above 0, such as 0.9")
    return Limit(device, int(fraction * device.num_bytes), f" by {name}={fraction:g}")


def limit_here() -> Limit | None:
    """The memory of the first device of this process; None where JAX does not know it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    num_bytes, known = stats.get("bytes_limit"), of_kind(device.device_kind)
    if num_bytes is None:
        return stated_limit(known) if known else None
    is_gpu = device.platform == "gpu"
    found = known or Accelerator(device.device_kind, num_bytes, is_gpu)
    return Limit(found, num_bytes, " that JAX has taken")


def needed_fraction(device: Accelerator, peak: int) -> float | None:
    """The share of a GPU's memory that a run needs, in hundredths; None if it is too much.

    A fiftieth is added, because memory is handed out in pieces.
    """
    fraction = math.ceil(102 * peak / device.num_bytes) / 100
    return fraction if fraction <= _LARGEST_FRACTION else None


def gib(num_bytes: int) -> str:
    """A size in GiB, for tables and verdicts."""
    return f"{num_bytes / 2**30:,.2f} GiB"


def mib(num_bytes: int) -> str:
    """A size in MiB, likewise."""
    return f"{num_bytes / 2**20:,.1f} MiB"


def _gpu(name: str, mebibytes: int) -> Accelerator:
    return Accelerator(name, mebibytes * 2**20, is_gpu=True)


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
