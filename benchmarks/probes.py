"""What a device can do at most: the rate of a copy and of a matrix product, both of fixed size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import accounting
from benchmarks.turns import Program

# Far beyond any cache, and long against the start of a program.
_COPY_BYTES = {"cpu": 1 << 28}
_COPY_BYTES_ELSEWHERE = 1 << 32
_MATMUL_SIDE = {"cpu": 1024}
_MATMUL_SIDE_ELSEWHERE = 8192
_CALLS = 4


class Probe(NamedTuple):
    """A program and the work of one call of it.

    Attributes:
      program: returns when the device has done the work.
      amount: bytes moved, or FLOP.
      what: size of the arrays, for tables.
    """

    program: Program
    amount: int
    what: str


def copy(num_bytes: int | None = None) -> Probe:
    """Adds 1 to every element of a float32 array in place, which reads and writes all of it."""
    if num_bytes is None:
        num_bytes = _COPY_BYTES.get(jax.default_backend(), _COPY_BYTES_ELSEWHERE)
    state = [jnp.zeros((num_bytes // 4,), jnp.float32)]

    def run() -> None:
        for _ in range(_CALLS):
            state[0] = add_one(state[0])
        jax.block_until_ready(state)

    what = f"{num_bytes / 2**20:,.0f} MiB in place"
    return Probe(run, _CALLS * accounting.copied_bytes(num_bytes), what)


@jax.jit(donate_argnums=0)
def add_one(x: jax.Array) -> jax.Array:
    """The program of `copy`; its argument is donated."""
    return x + 1


def matmul(dtype: Any, side: int | None = None) -> Probe:
    """A product of two square matrices of random numbers; zeros would be faster on a GPU."""
    if side is None:
        side = _MATMUL_SIDE.get(jax.default_backend(), _MATMUL_SIDE_ELSEWHERE)
    left, right = (
        jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in range(2)
    )

    def run() -> None:
        jax.block_until_ready([product(left, right) for _ in range(_CALLS)])

    what = f"{side:,} x {side:,}, {jnp.dtype(dtype)}"
    return Probe(run, _CALLS * accounting.matmul_flops(side, side, side), what)


@jax.jit
def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """The program of `matmul`."""
    return left @ right
