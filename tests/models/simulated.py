"""Simulated devices for tests: a process must choose their number before JAX starts."""

import os
import pathlib
import subprocess
import sys

import jax
from jax.sharding import AxisType


def output_on_devices(count, path, *arguments):
    """Runs a test file as a program on simulated devices and returns the words that it prints."""
    flag = f"--xla_force_host_platform_device_count={count}"
    root = str(pathlib.Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {flag}"
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def mesh_of_four():
    axes = {"axis_names": ("fsdp", "tensor"), "axis_types": (AxisType.Auto,) * 2}
    return jax.make_mesh((2, 2), **axes)
