"""Precision of float32 matrix products, where a device has faster ones than float32's own."""

import contextlib
from typing import Any

import jax

PRECISIONS = ("default", "high", "highest")
"""JAX's names. The default computes with TF32 on NVIDIA GPUs (10 bits of a factor's fraction) and
with bfloat16 on TPUs (7 bits), highest with all 23 bits. CPUs always compute in float32."""


def matmul_precision(name: str) -> contextlib.AbstractContextManager[Any]:
    """Context in which traced products, and their gradients, have one of `PRECISIONS`.

    The default is the setting of JAX, `jax_default_matmul_precision`.
    """
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)
