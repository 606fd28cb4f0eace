"""Soft values and per-token soft Bellman targets (Eq. 6 of the ETPO paper).

Position j of an action is the state (prompt, w_0 .. w_{j-1}); the last token of an action, its stop
token included, carries the reward. Inside an action nothing is discounted (`gamma_within` = 1),
between actions `gamma` applies. Values are in reward units, gradients are stopped.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from etpo_jax.divergence import categorical_kl


def soft_value(
    policy_logits_bjv: Float[Array, "*b v"],
    reference_logits_bjv: Float[Array, "*b v"],
    q_bjv: Float[Array, "*b v"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "*b"]:
    """E_pi[Q] - beta * KL(pi || rho) just before a token is chosen, exact over the vocabulary.

    Args:
      policy_logits_bjv: logits of pi at any temperature or mask that pi is defined with.
      reference_logits_bjv: logits of rho, processed alike.
      q_bjv: Q (or its target network) of every token, reward units.
      beta: reward per nat.

    Returns:
      [b, j] float32, reward units.
    """
    policy_bjv = jax.nn.softmax(policy_logits_bjv.astype(jnp.float32))
    expected_q = jnp.sum(policy_bjv * q_bjv, axis=-1)
    value = expected_q - beta * categorical_kl(policy_logits_bjv, reference_logits_bjv)
    return jax.lax.stop_gradient(value)


def optimal_soft_value(
    reference_logits_bjv: Float[Array, "*b v"],
    q_bjv: Float[Array, "*b v"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "*b"]:
    """beta * log E_rho[exp(Q / beta)]: the soft value of the best policy for this Q (Eq. 8).

    Differentiable, unlike `soft_value`: the path loss regresses it.
    """
    reference_log_probs = jax.nn.log_softmax(reference_logits_bjv.astype(jnp.float32))
    return beta * jax.nn.logsumexp(reference_log_probs + q_bjv / beta, axis=-1)


def token_targets(
    soft_value_bj: Float[Array, "b j"],
    next_state_value_b: Float[Array, "b"],
    reward_b: Float[Array, "b"],
    continues_b: Float[Array, "b"],
    mask_bj: Bool[Array, "b j"],
    *,
    gamma: float | Float[Array, ""],
    gamma_within: float | Float[Array, ""] = 1.0,
) -> Float[Array, "b j"]:
    """One-step soft Bellman targets of every token of an action in one pass (Eq. 6).

    Inside an action the soft value just before the next token; at the last real token the reward
    plus the discounted soft value of the next state.

    Args:
      soft_value_bj: `soft_value` just before token j under pi and the target critic.
      next_state_value_b: soft value just before the first token in the next state; ignored, NaN
        included, where `continues_b` is 0.
      reward_b: reward of the whole action.
      continues_b: 1 where the episode goes on, 0 where it ended.
      mask_bj: True for the tokens of the action; they come first (right padding).
      gamma: discount between actions, in [0, 1].
      gamma_within: discount inside an action; the paper's method has 1, its DISC. ablation 0.99.

    Returns:
      [b, j] float32 in reward units; 0 where the mask is False.

    Raises:
      ValueError: if a discount that is a Python number lies outside [0, 1].
    """
    _check_discount("gamma", gamma)
    _check_discount("gamma_within", gamma_within)
    final_b = final_target(next_state_value_b, reward_b, continues_b, gamma)
    shifted_bj = jnp.concatenate(
        [soft_value_bj[:, 1:], jnp.zeros_like(soft_value_bj[:, :1])], axis=1
    )
    targets_bj = jnp.where(is_last_token(mask_bj), final_b[:, None], gamma_within * shifted_bj)
    return jax.lax.stop_gradient(jnp.where(mask_bj, targets_bj, 0.0))


def retrace_targets(
    soft_value_bj: Float[Array, "b j"],
    q_taken_bj: Float[Array, "b j"],
    ratio_bj: Float[Array, "b j"],
    next_state_value_b: Float[Array, "b"],
    reward_b: Float[Array, "b"],
    continues_b: Float[Array, "b"],
    mask_bj: Bool[Array, "b j"],
    *,
    gamma: float | Float[Array, ""],
    gamma_within: float | Float[Array, ""] = 1.0,
    lambda_within: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """Retrace(lambda) along the sampled action (Munos et al. 2016) with soft values.

    G_{n-1} = r + gamma * continues * V'_0 and
    G_j = gamma_within * (V_{j+1} + lambda_within * c_{j+1} * (G_{j+1} - Q_{j+1}(w_{j+1}))) with
    c = min(1, ratio). It keeps the fixed point of `token_targets`, which it equals for
    lambda_within = 0, and lets the reward reach every token in one pass. V holds the KL already, so
    no log ratio is added along the path.

    Args:
      soft_value_bj, next_state_value_b, reward_b, continues_b, mask_bj, gamma, gamma_within: as in
        `token_targets`.
      q_taken_bj: the target critic's Q of the sampled tokens.
      ratio_bj: pi(w_j) / mu(w_j), mu the probability with which the token was sampled.
      lambda_within: in [0, 1].

    Returns:
      [b, j] float32 in reward units; 0 where the mask is False.

    Raises:
      ValueError: if a discount or weight that is a Python number lies outside [0, 1].
    """
    _check_discount("gamma", gamma)
    _check_discount("gamma_within", gamma_within)
    _check_discount("lambda_within", lambda_within)
    final_b = final_target(next_state_value_b, reward_b, continues_b, gamma)
    trace_bj = lambda_within * jnp.minimum(ratio_bj, 1.0)

    def backward(carry, column):
        # carry: V_{j+1} + lambda c_{j+1} (G_{j+1} - Q_{j+1}), what token j bootstraps from.
        value_b, q_b, trace_b, is_last_b, is_real_b = column
        target_b = jnp.where(is_last_b, final_b, gamma_within * carry)
        target_b = jnp.where(is_real_b, target_b, 0.0)
        carry = jnp.where(is_real_b, value_b + trace_b * (target_b - q_b), 0.0)
        return carry, target_b

    columns = (soft_value_bj, q_taken_bj, trace_bj, is_last_token(mask_bj), mask_bj)
    columns = jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), columns)
    _, targets_jb = jax.lax.scan(backward, jnp.zeros_like(final_b), columns, reverse=True)
    return jax.lax.stop_gradient(jnp.swapaxes(targets_jb, 0, 1))


def final_target(
    next_state_value_b: Float[Array, "b"],
    reward_b: Float[Array, "b"],
    continues_b: Float[Array, "b"],
    gamma: float | Float[Array, ""],
) -> Float[Array, "b"]:
    """Target of the last token: r + gamma * V', or r alone (not 0 times NaN) after the end."""
    bootstrap_b = jnp.where(continues_b > 0, next_state_value_b, 0.0)
    return reward_b + gamma * continues_b * bootstrap_b


def is_last_token(mask_bj: Bool[Array, "b j"]) -> Bool[Array, "b j"]:
    """True at the last real token of each row."""
    following = jnp.concatenate([mask_bj[:, 1:], jnp.zeros_like(mask_bj[:, :1])], axis=1)
    return mask_bj & ~following


def _check_discount(name: str, value) -> None:
    if isinstance(value, (int, float)) and not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
