"""The device mesh: axes `fsdp` (parameters and batch) and `tensor` (heads, MLP, vocabulary)."""

import math

import jax
from jax.sharding import AxisType, Mesh

from env.base import UsageError

AXES = ("fsdp", "tensor")


def build_mesh(text: str = "") -> Mesh:
    """The mesh that `--mesh` describes, such as "fsdp:4,tensor:2"; empty: all devices on fsdp.

    Raises:
      UsageError: for an unknown axis, a size that is no positive integer, or a product that is not
        the number of devices.
    """
    num_devices = jax.device_count()
    sizes = {"fsdp": num_devices, "tensor": 1}
    if text:
        sizes = dict.fromkeys(AXES, 1)
        for part in text.split(","):
            name, _, size = part.strip().partition(":")
            if name not in AXES or not size.isdecimal() or int(size) < 1:
                raise UsageError(
                    f"--mesh={text}: {part!r} is not AXIS:SIZE with an axis of {', '.join(AXES)}"
                )
            sizes[name] = int(size)
        if math.prod(sizes.values()) != num_devices:
            raise UsageError(
                f"--mesh={text}: {math.prod(sizes.values())} devices wanted, {num_devices} present"
            )
    return jax.make_mesh(
        tuple(sizes[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )
