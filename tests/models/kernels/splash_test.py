"""The TPU kernel, interpreted, against the reference; alone, in the decoder and on a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import attend, causal_mask
from models.kernels import splash
from models.transformer import Decoder, positions
from tests.models.simulated import mesh_of_four, output_on_devices
from tests.models.small import small_decoder

CONFIG = small_decoder(
    vocab_size=32, hidden_size=32, intermediate_size=48, tie_word_embeddings=True
)
interpreted = functools.partial(splash.attend_causal, interpret=True)


def padded_mask(m):
    """Mask of four rows: left padding, padding at both ends, no padding, right padding."""
    mask = np.ones((4, m), bool)
    mask[0, :9] = mask[1, :3] = mask[1, -4:] = mask[3, -6:] = False
    return jnp.asarray(mask)


def values_and_gradients(attention, mask, arrays, weights):
    def total(*arrays):
        out = attention(*arrays, mask)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return out * (weights != 0), *gradients


def check(s, m, n, k, mesh=None, window=None):
    rng = np.random.default_rng(0)
    shapes = ((4, s, n, 16), (4, m, k, 16), (4, m, k, 16))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    mask = padded_mask(m)
    # What padding sees differs, and nobody reads it.
    weights = jnp.where(mask[:, m - s :, None, None], rng.normal(size=shapes[0]), 0.0)
    run = functools.partial(jax.jit, static_argnums=0)(values_and_gradients)
    expected = run(attend, causal_mask(mask, window), arrays, weights)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        got = run(functools.partial(interpreted, window=window), mask, arrays, weights)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("s", "m", "n", "k"),
    [(128, 128, 2, 2), (40, 40, 4, 2), (24, 150, 2, 1)],
    ids=["whole", "padded, grouped", "last queries"],
)
def test_equals_the_reference(s, m, n, k):
    check(s, m, n, k)


@pytest.mark.parametrize("window", [1, 7])
def test_sliding_window(window):
    check(24, 150, 2, 1, window=window)


def test_longest_block_that_divides():
    assert [splash._block(length) for length in (128, 512, 640, 768, 1024)] == [
        *(128, 512, 128, 384, 512)
    ]


@pytest.mark.parametrize("last", [None, 5])
def test_in_the_decoder(monkeypatch, last):
    monkeypatch.setattr(splash, "attend_causal", interpreted)
    tokens = jax.random.randint(jax.random.key(0), (4, 20), 0, CONFIG.vocab_size)
    mask = padded_mask(20)
    plain = Decoder(CONFIG)
    with_kernel = plain.clone(attention_implementation="splash")
    variables = plain.init(jax.random.key(1), tokens, positions(mask), mask)

    def hidden(model):
        apply = jax.jit(functools.partial(model.apply, last=last, method="hidden"))
        return apply(variables, tokens, positions(mask), mask)

    kept = np.asarray(mask[:, -last if last else 0 :])
    difference = jnp.abs(hidden(with_kernel) - hidden(plain))[kept]
    assert difference.max() < 1e-5


def test_on_four_devices():
    assert output_on_devices(4, __file__) == ["split", "whole"]


def on_four_devices():
    mesh = mesh_of_four()
    check(40, 40, 4, 2, mesh)
    print("split")
    check(40, 40, 3, 1, mesh)  # a key head for all: queries stay whole with it
    print("whole")


if __name__ == "__main__":
    on_four_devices()
