"""Divergence and entropy over the whole vocabulary, log ratios of actions, and masked means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def categorical_kl(
    policy_logits: Float[Array, "*b v"], reference_logits: Float[Array, "*b v"]
) -> Float[Array, "*b"]:
    """KL(pi || rho) in nats, summed over the last axis.

    Tokens that both sides mask with a finite -1e9 contribute nothing.
    """
    policy_log_probs = jax.nn.log_softmax(policy_logits.astype(jnp.float32))
    reference_log_probs = jax.nn.log_softmax(reference_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(policy_log_probs) * (policy_log_probs - reference_log_probs), axis=-1)


def entropy(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Entropy of softmax(logits) in nats, over the last axis."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def action_log_ratio(
    log_probs_bj: Float[Array, "b j"],
    other_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
) -> Float[Array, "b"]:
    """Log ratio of two probabilities of a whole action, in nats (Eq. 4)."""
    return jnp.sum(jnp.where(mask_bj, log_probs_bj - other_log_probs_bj, 0.0), axis=1)


def masked_mean(values: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Float[Array, ""]:
    """Mean of `values` where `mask` is True; 0 if it is True nowhere.

    Divides by the number of real entries, so that the result does not depend on padding. NaN under
    the mask is dropped, which a product would not do.
    """
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)
