"""The TPU kernel of a decoding step, interpreted, against the reference; alone and on a mesh."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import attend
from models.kernels import flash_decode
from tests.models.simulated import mesh_of_four, output_on_devices


def check(n, k, m, mesh=None):
    rng = np.random.default_rng(0)
    shapes = ((4, n, 16), (4, k, 16, m), (4, k, m, 16))
    q, keys, values = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    slot = np.arange(m)
    # A prompt from the first slot, one that starts in a later block, one slot, and a gap.
    mask = np.stack([slot < m - 9, (slot >= m // 2) & (slot < m - 9), slot == 5, slot % 200 < 60])
    expected = attend(q[:, None], keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2), mask[:, None])
    # A block that is not to be read would make everything NaN.
    values = values.at[2, :, flash_decode.SLOTS :].set(jnp.nan)
    values = values.at[1, :, : m // 2 // flash_decode.SLOTS * flash_decode.SLOTS].set(jnp.nan)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        got = jax.jit(flash_decode.attend_newest, static_argnames="interpret")(
            q, keys, values, mask, interpret=True
        )
    np.testing.assert_allclose(got, expected[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "k", "m"), [(2, 2, 128), (4, 2, 384), (3, 1, 256)])
def test_equals_the_reference(n, k, m):
    check(n, k, m)


def test_a_cache_of_another_length_is_refused():
    with pytest.raises(ValueError, match="100 slots"):
        flash_decode.attend_newest(
            jnp.zeros((1, 2, 8)),
            jnp.zeros((1, 2, 8, 100)),
            jnp.zeros((1, 2, 100, 8)),
            jnp.ones((1, 100), bool),
        )


def test_on_four_devices():
    assert output_on_devices(4, __file__) == ["split", "whole"]


def on_four_devices():
    mesh = mesh_of_four()
    check(4, 2, 256, mesh)
    print("split")
    check(3, 1, 256, mesh)  # a key head for all: queries stay whole with it
    print("whole")


if __name__ == "__main__":
    on_four_devices()
