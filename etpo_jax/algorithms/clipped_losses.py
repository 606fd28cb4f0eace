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


def approximate_kl(log_ratio: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Float[Array, ""]:
    """Mean of x - 1 - log x, x = pi_new / pi_old of actions or tokens that pi_old sampled.

    An unbiased estimate of KL(pi_old || pi_new) in nats that is never negative.
    """
    log_ratio = jnp.where(mask, log_ratio, 0.0)
    return masked_mean(jnp.expm1(log_ratio) - log_ratio, mask)


def value_loss(
    value: Float[Array, "*b"],
    target: Float[Array, "*b"],
    mask: Bool[Array, "*b"],
    *,
    old_value: Float[Array, "*b"] | None = None,
    value_clip: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    """Half the mean squared error of a value head; the target's gradient is stopped.

    With `old_value`, the larger one of two errors counts: that of the value, and that of the value
    moved no further than `value_clip` away from the old one (the value clip of PPO's first code).

    Args:
      value: differentiable.
      target: what it regresses on.
      mask: True for entries that count.
      old_value: the value before the first step on these entries; None clips nothing.
      value_clip: greatest distance from it, in reward units.
    """
    target = jax.lax.stop_gradient(target)
    loss = optax.losses.l2_loss(value, target)
    if old_value is not None:
        old_value = jax.lax.stop_gradient(old_value)
        clipped = old_value + jnp.clip(value - old_value, -value_clip, value_clip)
        loss = jnp.maximum(loss, optax.losses.l2_loss(clipped, target))
    return masked_mean(loss, mask)
