"""The device mesh: axes `fsdp` (parameters and batch) and `tensor` (heads, MLP, vocabulary)."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from env.base import UsageError

AXES = ("fsdp", "tensor")


def build_mesh(text: str = "") -> Mesh:
    """The mesh that `--mesh` describes, such as "fsdp:4,tensor:2"; empty: all devices on fsdp.

    Raises:
      UsageError: for an unknown axis, a size that is no positive integer, or a product that is not
        the number of devices.
    """
    num_devices = jax.device_count()
    sizes = axis_sizes(text, num_devices)
    if math.prod(sizes) != num_devices:
        raise UsageError(f"--mesh={text}: {math.prod(sizes)} devices wanted, {num_devices} present")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(text: str = "") -> AbstractMesh:
    """A mesh as `build_mesh` makes it, over devices that need not exist; empty: all that do.

    Raises:
      UsageError: for an unknown axis or a size that is no positive integer.
    """
    sizes = axis_sizes(text, 0 if text else jax.device_count())
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(text: str, num_devices: int) -> tuple[int, ...]:
    """Sizes in the order of `AXES`; all devices on fsdp where the text is empty.

    Raises:
      UsageError: for an unknown axis or a size that is no positive integer.
    """
    if not text:
        return (num_devices, *(1 for _ in AXES[1:]))
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES or not size.isdecimal() or int(size) < 1:
            raise UsageError(
                f"--mesh={text}: {part!r} must be AXIS:SIZE with an axis of {', '.join(AXES)}, "
                "such as fsdp:4"
            )
        sizes[name] = int(size)
    return tuple(sizes[axis] for axis in AXES)
