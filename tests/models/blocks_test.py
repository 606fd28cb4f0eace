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
QUERY_KEY_NORM = small_decoder(num_layers=1, query_key_norm=True)


def random_layer(config):
    rng = np.random.default_rng(0)
    layers = abstract_parameters(config, jnp.float32)["layers"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape[1:])), layers)


def output(config, layer, x, last=None):
    positions = jnp.arange(x.shape[1])[None]
    mask = causal_mask(jnp.ones(x.shape[:2], bool))

    def attention(q, k, v):
        return attend(q, k, v, mask), k.shape

    angles = rope.angles(config, positions)
    y, kept = blocks.block(config, layer, x, angles, attention, last=last)
    assert kept == (*x.shape[:2], config.num_kv_heads, config.head_dim)
    return y


@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("config", [CONFIG, QUERY_KEY_NORM], ids=["biased", "normed"])
def test_every_form_of_a_layer_computes_the_same(config, is_fused, last):
    layer, x = random_layer(config), jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 16)))
    expected = output(config, layer, x)
    got = output(config, blocks.fuse(config, layer) if is_fused else layer, x, last)
    assert np.abs(expected - x).max() > 0.5
    np.testing.assert_allclose(got, expected if last is None else expected[:, -last:], atol=1e-5)


def test_norm_by_hand():
    normed = blocks.rms_norm(jnp.array([[3.0, 4.0]]), jnp.array([1.0, 2.0]), 0.0)
    np.testing.assert_allclose(normed, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
