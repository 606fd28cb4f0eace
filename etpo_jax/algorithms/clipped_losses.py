"""Losses of clipped policy gradients (PPO), over whole actions or over tokens."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from etpo_jax.divergence import masked_mean


def standardize(
    advantage: Float[Array, "*b"], mask: Bool[Array, "*b"], *, epsilon: float = 1e-6
) -> Float[Array, "*b"]:
    """Advantages with mean 0 and deviation 1 over the real entries; 0 elsewhere."""
    centred = advantage - masked_mean(advantage, mask)
    deviation = jnp.sqrt(masked_mean(jnp.square(centred), mask))
    return jax.lax.stop_gradient(jnp.where(mask, centred / (deviation + epsilon), 0.0))


def clipped_surrogate(
    log_ratio: Float[Array, "*b"],
    advantage: Float[Array, "*b"],
    mask: Bool[Array, "*b"],
    *,
    clip_ratio: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Clipped surrogate loss, with x the ratio to the sampling policy (PPO, Eq. 7).

    The loss is -mean min(x A, clip(x, 1 - c, 1 + c) A).

    Args:
      log_ratio: log pi_new - log pi_old of whole actions or of tokens (differentiable).
      advantage: its gradient is stopped.
      mask: True for entries that count.
      clip_ratio: c, the distance from 1 at which the ratio is clipped.
    """
    # Under the mask the ratio may be anything; exp of it must not become inf or NaN.
    ratio = jnp.exp(jnp.where(mask, log_ratio, 0.0))
    advantage = jax.lax.stop_gradient(advantage)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    return -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)


def clipped_share(
    log_ratio: Float[Array, "*b"], mask: Bool[Array, "*b"], *, clip_ratio: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Share of the entries whose ratio lies outside [1 - c, 1 + c], where the clip may act."""
    ratio = jnp.exp(jnp.where(mask, log_ratio, 0.0))
    return masked_mean((jnp.abs(ratio - 1.0) > clip_ratio).astype(jnp.float32), mask)


def value_loss(
    value: Float[Array, "*b"], target: Float[Array, "*b"], mask: Bool[Array, "*b"]
) -> Float[Array, ""]:
    """Half the mean squared error of a value head; the target's gradient is stopped."""
    return masked_mean(optax.losses.l2_loss(value, jax.lax.stop_gradient(target)), mask)
