"""Policy optimisation with action decomposition (POAD, arXiv 2405.15821), the authors' follow-up.

Every token is a decision with a value of its own; credit goes back by lambda-returns, undiscounted
inside an action and with gamma between actions. Pure functions. The clipped ratio is per token
(`ppo_kl.clipped_surrogate`). The KL to the reference is in the rewards token by token, so
that all algorithms here maximise the objective of Eq. 2; beta 0 is POAD without it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from etpo_jax.soft_q import is_last_token


def token_rewards(
    reward_b: Float[Array, "b"],
    log_probs_bj: Float[Array, "b j"],
    reference_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """-beta log(pi(w_j) / rho(w_j)), and the reward of the action at its last token.

    They add up to `etpo_jax.algorithms.ppo_kl.kl_reward`.

    Args:
      reward_b: of the whole action.
      log_probs_bj: log pi of the sampled tokens under the policy that sampled them.
      reference_log_probs_bj: log rho of the same tokens.
      mask_bj: True for the tokens of the action; they come first (right padding).
      beta: reward per nat.

    Returns:
      [b, j] in reward units; 0 where the mask is False.
    """
    kl_bj = -beta * (log_probs_bj - reference_log_probs_bj)
    last_bj = jnp.where(is_last_token(mask_bj), reward_b[:, None], 0.0)
    return jnp.where(mask_bj, kl_bj + last_bj, 0.0)


def lambda_advantages(
    token_reward_bj: Float[Array, "b j"],
    value_bj: Float[Array, "b j"],
    next_state_value_b: Float[Array, "b"],
    continues_b: Float[Array, "b"],
    mask_bj: Bool[Array, "b j"],
    *,
    gamma: float | Float[Array, ""],
    gamma_within: float | Float[Array, ""] = 1.0,
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """Generalised advantages of tokens; plus `value_bj` they are the lambda-returns.

    delta_j = r_j + gamma_within V_{j+1} - V_j, at the last token r + gamma continues V'_0 - V_j,
    and A_j = delta_j + gamma_within gae_lambda A_{j+1}. The trace ends with the action, whose
    successor is bootstrapped: transitions are learnt from one by one.

    Args:
      token_reward_bj: see `token_rewards`.
      value_bj: V just before token j.
      next_state_value_b: V before the first token in the next state; ignored, NaN included, where
        `continues_b` is 0.
      continues_b: 1 where the episode goes on, 0 where it ended.
      mask_bj: True for the tokens of the action; they come first (right padding).
      gamma: discount between actions.
      gamma_within: discount inside an action; 1 in POAD.
      gae_lambda: weight of later errors, in [0, 1]; 1 is the whole action's return.

    Returns:
      [b, j] in reward units; 0 where the mask is False. Gradients are stopped.
    """
    bootstrap_b = jnp.where(continues_b > 0, next_state_value_b, 0.0)
    final_b = gamma * continues_b * bootstrap_b
    following_bj = jnp.concatenate([value_bj[:, 1:], jnp.zeros_like(value_bj[:, :1])], axis=1)
    following_bj = jnp.where(is_last_token(mask_bj), final_b[:, None], gamma_within * following_bj)
    error_bj = jnp.where(mask_bj, token_reward_bj + following_bj - value_bj, 0.0)

    def backward(carry_b, error_b):
        advantage_b = error_b + gamma_within * gae_lambda * carry_b
        return advantage_b, advantage_b

    # Padding comes last and has error 0, so it carries nothing into the action.
    _, advantage_jb = jax.lax.scan(
        backward, jnp.zeros_like(final_b), jnp.swapaxes(error_bj, 0, 1), reverse=True
    )
    return jax.lax.stop_gradient(jnp.swapaxes(advantage_jb, 0, 1))
