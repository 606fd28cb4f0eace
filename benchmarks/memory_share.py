"""How JAX takes a GPU's memory in a benchmark; must be settled before JAX sees the device."""

import os

from etpo_jax.devices.accelerators import FRACTION, FRACTIONS

_FRACTION_OF_A_RUN = "0.92"
"""The share that launch/ and the documentation give to a run."""


def use(*, shared: bool) -> None:
    """Takes memory as a run does, or as it is needed where another library is measured beside it.

    Variables of the environment that are set already stand.

    Args:
      shared: True if a peer needs memory of the same device.
    """
    if shared:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    elif not any(os.environ.get(name) for name in FRACTIONS):  # JAX refuses both
        os.environ[FRACTION] = _FRACTION_OF_A_RUN
