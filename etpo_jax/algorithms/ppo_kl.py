"""PPO on whole actions with a KL penalty in the reward: the paper's baseline PPO-KL (section 5.2).

An action is one decision: its reward is r - beta log(pi(a) / rho(a)), its credit is one number that
all its tokens share (Eq. 5). Pure functions; advantages and returns are constants for gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from etpo_jax.divergence import action_log_ratio, masked_mean


def kl_reward(
    reward_b: Float[Array, "b"],
    log_probs_bj: Float[Array, "b j"],
    reference_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "b"]:
    """r - beta log(pi(a) / rho(a)), in reward units.

    Args:
      reward_b: of the whole action.
      log_probs_bj: log pi of the sampled tokens under the policy that sampled them.
      reference_log_probs_bj: log rho of the same tokens.
      mask_bj: True for the tokens of the action.
      beta: reward per nat.
    """
    return reward_b - beta * action_log_ratio(log_probs_bj, reference_log_probs_bj, mask_bj)


def action_return(
    kl_reward_b: Float[Array, "b"],
    next_state_value_b: Float[Array, "b"],
    continues_b: Float[Array, "b"],
    *,
    gamma: float | Float[Array, ""],
) -> Float[Array, "b"]:
    """What an action is worth: its reward and the discounted value of where it leads.

    Args:
      next_state_value_b: ignored, NaN included, where `continues_b` is 0.
      continues_b: 1 where the episode goes on, 0 where it ended.
      gamma: discount between actions.
    """
    bootstrap_b = jnp.where(continues_b > 0, next_state_value_b, 0.0)
    return jax.lax.stop_gradient(kl_reward_b + gamma * continues_b * bootstrap_b)


def leave_one_out(
    return_b: Float[Array, "b"], is_alike_bb: Bool[Array, "b b"]
) -> Float[Array, "b"]:
    """A baseline without a network: the mean return of the other actions in the same state.

    An action whose state nobody else was in is held against all others. The own return never
    counts, which keeps the policy gradient unbiased (Kool et al. 2019).

    Args:
      return_b: at least two.
      is_alike_bb: whether two rows have the same state; the diagonal is ignored.

    Raises:
      ValueError: for a single row, which has no others.
    """
    size = return_b.shape[0]
    if size < 2:
        raise ValueError("a leave-one-out baseline needs at least two actions")
    others_bb = ~jnp.eye(size, dtype=jnp.bool_)
    alike_bb = is_alike_bb & others_bb
    chosen_bb = jnp.where(alike_bb.any(axis=1, keepdims=True), alike_bb, others_bb)
    mean_b = chosen_bb @ return_b / chosen_bb.sum(axis=1)
    return jax.lax.stop_gradient(mean_b)


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
    """-mean min(x A, clip(x, 1 - c, 1 + c) A), x the ratio to the sampling policy (PPO, Eq. 7).

    Entries are whole actions here, tokens in `etpo_jax.algorithms.poad`.

    Args:
      log_ratio: log pi_new - log pi_old of what was sampled (differentiable).
      advantage: its gradient is stopped.
      mask: True for entries that count.
      clip_ratio: c.
    """
    # Under the mask the ratio may be anything; exp of it must not become inf or NaN.
    ratio = jnp.exp(jnp.where(mask, log_ratio, 0.0))
    advantage = jax.lax.stop_gradient(advantage)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    return -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)


def clipped_share(
    log_ratio: Float[Array, "*b"], mask: Bool[Array, "*b"], *, clip_ratio: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Share of the entries whose ratio lies outside [1 - c, 1 + c]; how far an update went."""
    ratio = jnp.exp(jnp.where(mask, log_ratio, 0.0))
    return masked_mean((jnp.abs(ratio - 1.0) > clip_ratio).astype(jnp.float32), mask)


def value_loss(
    value: Float[Array, "*b"], target: Float[Array, "*b"], mask: Bool[Array, "*b"]
) -> Float[Array, ""]:
    """Half the mean squared error of a value head; the target's gradient is stopped."""
    return masked_mean(0.5 * jnp.square(value - jax.lax.stop_gradient(target)), mask)
