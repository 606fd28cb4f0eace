"""Rotary position embeddings (Su et al. 2021), in the half-split layout of Hugging Face weights."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.config import DecoderConfig, LinearRope, Llama3Rope


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """Angle per position of each pair of dimensions: [h / 2] float32, radians.

    The computation is in float32, as in the published implementations, so that angles at far
    positions agree with theirs.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearRope):
        frequencies = frequencies / np.float32(scaling.factor)
    elif isinstance(scaling, Llama3Rope):
        frequencies = _llama3(frequencies, scaling)
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, scaling: Llama3Rope) -> np.ndarray:
    """Divides low frequencies by `factor` and keeps high ones, with a linear ramp between."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def angles(
    config: DecoderConfig, positions: Int[Array, "*b"]
) -> tuple[Float[Array, "*b c"], Float[Array, "*b c"]]:
    """Cosine and sine of the angles of each position, float32, c = h / 2."""
    angle = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "*b n h"], cos: Float[Array, "*b c"], sin: Float[Array, "*b c"]
) -> Float[Array, "*b n h"]:
    """Rotates each head of queries or keys by the angles of its position; the dtype is kept."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
