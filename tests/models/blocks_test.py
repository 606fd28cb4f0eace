"""One layer: fused maps and the last positions alone give the values of the plain layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import blocks, rope
from models.attention import attend, causal_mask
from models.convert import abstract_parameters
from tests.models.small import small_decoder

CONFIG = small_decoder(num_layers=1, attention_bias=True)


def random_layer():
    rng = np.random.default_rng(0)
    layers = abstract_parameters(CONFIG, jnp.float32)["layers"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape[1:])), layers)


def output(layer, x, last=None):
    positions = jnp.arange(x.shape[1])[None]
    mask = causal_mask(jnp.ones(x.shape[:2], bool))

    def attention(q, k, v):
        return attend(q, k, v, mask), k.shape

    angles = rope.angles(CONFIG, positions)
    y, kept = blocks.block(CONFIG, layer, x, angles, attention, last=last)
    assert kept == (*x.shape[:2], CONFIG.num_kv_heads, CONFIG.head_dim)
    return y


@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("is_fused", [False, True])
def test_every_form_of_a_layer_computes_the_same(is_fused, last):
    layer, x = random_layer(), jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 16)))
    expected = output(layer, x)
    got = output(blocks.fuse(CONFIG, layer) if is_fused else layer, x, last)
    assert np.abs(expected - x).max() > 0.5
    np.testing.assert_allclose(got, expected if last is None else expected[:, -last:], atol=1e-5)


def test_norm_by_hand():
    normed = blocks.rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(normed, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
