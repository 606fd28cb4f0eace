"""Devices that programs are compiled for and that need not be there: TPU slices and GPUs.

A GPU is described by a GpuTargetConfigProto in text form, as XLA's sources have them for known
cards in `xla/backends/gpu/target_config/specs`. `targets/` holds those facts for a few of them.
"""

import dataclasses
import importlib.util
import math
import re
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from env.base import UsageError
from etpo_jax.devices import accelerators
from etpo_jax.devices.accelerators import Accelerator
from etpo_jax.devices.mesh import AXES, axis_sizes

_TPU = re.compile(r"(v4|v5p):\d+x\d+x\d+|(v5e|v6e):\d+x\d+")
COMPILERS = {"cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
"""Modules one of which compiles for a kind of device, by the extra that installs the first."""

_CARDS = ("h200", "h100", "a100-80", "a100-40", "b200")
_ALIASES = {"a100": "a100-80"}
HELP = (
    f"Device that the run's programs are compiled for: an NVIDIA card ({', '.join(_CARDS)}, or "
    "CUDA:FILE with its GpuTargetConfigProto as text), as many of them as --mesh has devices, or a "
    "TPU topology such as v5e:4x4, v6e:2x4, v5p:2x2x1, v4:2x2x4."
)
_EXAMPLES = f"{', '.join(_CARDS)}, CUDA:FILE, v5e:4x4, v6e:2x4, v5p:2x2x1 or v4:2x2x4"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by the name that `--aot` gives them.

    Attributes:
      name: value of `--aot`.
      gpu: GpuTargetConfigProto of a card as text; empty for TPUs.
    """

    name: str
    gpu: str = ""

    @property
    def device(self) -> Accelerator:
        """The kind of one device."""
        name = _ALIASES.get(self.name, self.name.split(":")[0])
        if name in accelerators.ACCELERATORS:
            return accelerators.ACCELERATORS[name]
        return Accelerator(name, int(self.value("device_memory_size")), is_gpu=True)

    def value(self, field: str) -> float:
        """A number of the card's description, such as "memory_bandwidth" in bytes per second."""
        found = re.search(rf"\b{field}: ([\d.]+)", self.gpu)
        if found is None:
            raise UsageError(f"--aot={self.name}: no {field} in the description of the card")
        return float(found.group(1))

    def mesh(self, mesh_text: str) -> Mesh:
        """The mesh of `--mesh` over these devices; only where `JAX_PLATFORMS` is cpu.

        Raises:
          UsageError: there is no such topology, or the mesh does not fit it.
        """
        devices = self._devices(math.prod(axis_sizes(mesh_text, 1)))
        sizes = axis_sizes(mesh_text, len(devices))
        if math.prod(sizes) != len(devices):
            raise UsageError(
                f"--mesh={mesh_text}: {math.prod(sizes)} devices, --aot={self.name} has "
                f"{len(devices)}"
            )
        # Not `jax.make_mesh`, which rejects some shapes of topologies.
        types = (AxisType.Auto,) * len(AXES)
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=types)

    def _devices(self, num_cards: int) -> list[Any]:
        from jax.experimental import topologies

        options: dict[str, Any]
        if self.gpu:
            options = {"target_config": self.gpu, "topology": f"1x1x{num_cards}"}
        else:
            options = {"topology_name": self.name}
            if self.name.startswith("v4"):
                options["chip_config_name"] = "megacore"
            if set(self.name.split(":")[1].split("x")) == {"1"}:
                options["chips_per_host_bounds"] = (1, 1, 1)
        platform = "cuda" if self.gpu else "tpu"
        try:
            return list(topologies.get_topology_desc(platform=platform, **options).devices)
        except Exception as error:  # the plugins raise nothing narrower
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"--aot={self.name}: no such topology ({reason})") from error


def find(name: str) -> Topology:
    """The devices that a value of `--aot` names.

    Raises:
      UsageError: it names none, or the compiler for it is not installed.
    """
    if name.startswith("CUDA:"):
        topology = Topology(name, _read(name))
    elif (card := _ALIASES.get(name, name)) in _CARDS:
        folder = resources.files("etpo_jax.devices") / "targets"
        topology = Topology(name, (folder / f"{card}.txtpb").read_text())
    elif _TPU.fullmatch(name):
        topology = Topology(name)
    else:
        raise UsageError(f"--aot={name}: must be one of {_EXAMPLES}")
    extra = "cuda" if topology.gpu else "tpu"
    if not any(importlib.util.find_spec(module) for module in COMPILERS[extra]):
        raise UsageError(
            f"--aot={name}: {COMPILERS[extra][0]} is not installed "
            f"(pip install -r requirements-{extra}.txt)"
        )
    return topology


def compilers() -> list[str]:
    """Requirements of the compilers that belong to the installed JAX, without their libraries."""
    version = metadata.version("jax")
    (tpu,) = {line.partition(";")[0] for line in metadata.requires("jax") or () if "libtpu" in line}
    return [f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}", tpu]


def _read(name: str) -> str:
    path = Path(name.partition(":")[2])
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--aot={name}: cannot read {path}: {error}") from error
    if "gpu_device_info" not in text:
        raise UsageError(f"--aot={name}: {path} holds no gpu_device_info, as XLA's specs do")
    return text


if __name__ == "__main__":
    print(*compilers())
