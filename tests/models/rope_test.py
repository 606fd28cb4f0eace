"""Rotary positions: by hand, by complex numbers, and the property for which they exist."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models import rope
from models.config import LinearRope, Llama3Rope
from tests.models.small import small_decoder

CONFIG = small_decoder(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1
)


def test_frequencies_by_hand():
    np.testing.assert_allclose(rope.inverse_frequencies(CONFIG), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    config = dataclasses.replace(CONFIG, rope_scaling=LinearRope(4.0))
    np.testing.assert_allclose(rope.inverse_frequencies(config), [0.25, 0.025, 2.5e-3, 2.5e-4])


def test_llama3_keeps_high_divides_low_and_ramps_between():
    # Turns within the window of 200 tokens: 31.8, 3.18, 0.318, 0.0318.
    config = dataclasses.replace(CONFIG, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 200))
    kept = (200 * 0.1 / (2 * np.pi) - 1) / (4 - 1)
    ramp = kept * 0.1 + (1 - kept) * 0.1 / 8
    np.testing.assert_allclose(
        rope.inverse_frequencies(config), [1, ramp, 0.01 / 8, 0.001 / 8], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotation_is_a_product_of_complex_numbers(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 3, 8)), dtype)
    positions = jnp.asarray(rng.integers(0, 50, (2, 5)), jnp.int32)
    rotated = rope.rotate(x, *rope.angles(CONFIG, positions))
    pairs = np.asarray(x[..., :4], np.float64) + 1j * np.asarray(x[..., 4:], np.float64)
    angle = np.asarray(positions)[..., None, None] * np.array([1, 0.1, 0.01, 0.001])
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], -1)
    assert rotated.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02  # bfloat16 has 8 bits
    np.testing.assert_allclose(np.asarray(rotated, np.float64), expected, atol=tolerance)


def test_scores_depend_on_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 8)), jnp.float32) for _ in range(2))

    def score(query_position, key_position):
        turned = [
            rope.rotate(x, *rope.angles(CONFIG, jnp.array([position])))
            for x, position in ((q, query_position), (k, key_position))
        ]
        return float(jnp.vdot(*turned))

    assert score(7, 3) == pytest.approx(score(24, 20), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)
