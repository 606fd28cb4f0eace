"""Critic and policy losses (Algorithm 1; Eq. 7, 8, 9), and the path-consistency regression."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from etpo_jax.divergence import action_log_ratio, masked_mean

PathStarts = Literal["all", "root"]
PolicyTarget = Literal["reference_exp_q", "exp_q"]


def critic_loss(
    q_taken_bj: Float[Array, "b j"],
    q_target_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    huber_delta: float | None,
) -> Float[Array, ""]:
    """Mean over real tokens of the Huber loss of Q(w) - target (Algorithm 1).

    Args:
      q_taken_bj: Q_theta of the sampled tokens.
      q_target_bj: targets of the regression; their gradient is stopped.
      mask_bj: True for real tokens.
      huber_delta: where the loss turns from squared to linear, in reward units; None is the squared
        error. A delta below the spread of the targets biases the mean towards the median.
    """
    q_target_bj = jax.lax.stop_gradient(q_target_bj)
    if huber_delta is None:
        loss_bj = optax.losses.l2_loss(q_taken_bj, q_target_bj)
    else:
        loss_bj = optax.losses.huber_loss(q_taken_bj, q_target_bj, delta=huber_delta)
    return masked_mean(loss_bj, mask_bj)


def path_loss(
    state_value_bj: Float[Array, "b j"],
    log_ratio_bj: Float[Array, "b j"],
    path_target_b: Float[Array, "b"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
    starts: PathStarts = "all",
) -> Float[Array, ""]:
    """Squared violation of soft path consistency along the sampled action (Nachum et al. 2017).

    At the soft optimum v_j = target - beta * sum_{k >= j} log(pi*(w_k) / rho(w_k)) for every path,
    whoever sampled it, because appending a token is deterministic. So no importance weight is
    needed and the reward reaches every token at once.

    Args:
      state_value_bj: soft value just before token j, reward units (differentiable).
      log_ratio_bj: log pi_Q(w_j) - log rho(w_j) in nats, pi_Q the policy that Q implies
        (differentiable).
      path_target_b: r + gamma * continues * v'; its gradient is stopped.
      mask_bj: True for the tokens of the action.
      beta: reward per nat.
      starts: "all" demands consistency from every token on, "root" of the whole action only.
    """
    suffix_bj = suffix_sums(log_ratio_bj, mask_bj)
    target_b = jax.lax.stop_gradient(path_target_b)
    violation_bj = jnp.square(state_value_bj + beta * suffix_bj - target_b[:, None])
    if starts == "root":
        return masked_mean(violation_bj[:, 0], mask_bj[:, 0])
    return masked_mean(violation_bj, mask_bj)


def suffix_sums(values_bj: Float[Array, "b j"], mask_bj: Bool[Array, "b j"]) -> Float[Array, "b j"]:
    """Sum of the real tokens' values from each token to the end of the action."""
    values_bj = jnp.where(mask_bj, values_bj, 0.0)
    return jnp.flip(jnp.cumsum(jnp.flip(values_bj, axis=1), axis=1), axis=1)


def policy_loss(
    policy_logits_bjv: Float[Array, "b j v"],
    reference_logits_bjv: Float[Array, "b j v"],
    q_bjv: Float[Array, "b j v"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
    target: PolicyTarget = "reference_exp_q",
) -> Float[Array, ""]:
    """Mean over real tokens of `policy_objective`."""
    objective_bj = policy_objective(
        policy_logits_bjv, reference_logits_bjv, q_bjv, beta=beta, target=target
    )
    return masked_mean(objective_bj, mask_bj)


def policy_objective(
    policy_logits_bjv: Float[Array, "*b v"],
    reference_logits_bjv: Float[Array, "*b v"],
    q_bjv: Float[Array, "*b v"],
    *,
    beta: float | Float[Array, ""],
    target: PolicyTarget = "reference_exp_q",
) -> Float[Array, "*b"]:
    """beta * KL(pi || target) up to a constant for each token, exact over the vocabulary.

    "reference_exp_q" aims at rho * exp(Q / beta) (Eq. 8 and 9), "exp_q" at exp(Q / beta) (Eq. 7 as
    printed, which equals Eq. 9 only for a uniform rho). Q and rho are constants here.
    """
    policy_log_probs = jax.nn.log_softmax(policy_logits_bjv.astype(jnp.float32))
    score_bjv = beta * policy_log_probs - jax.lax.stop_gradient(q_bjv)
    if target == "reference_exp_q":
        reference_log_probs = jax.nn.log_softmax(reference_logits_bjv.astype(jnp.float32))
        score_bjv -= beta * jax.lax.stop_gradient(reference_log_probs)
    return jnp.sum(jnp.exp(policy_log_probs) * score_bjv, axis=-1)


def doubly_robust_correction(
    log_probs_bj: Float[Array, "b j"],
    q_taken_bj: Float[Array, "b j"],
    q_target_bj: Float[Array, "b j"],
    ratio_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
) -> Float[Array, "b j"]:
    """Correction of `policy_objective` for the critic's error at the sampled token.

    With it, the gradient of a token is that of sum_w pi(w) Q(w) and of the KL to rho, plus
    c (G - Q(w_j)) grad log pi(w_j): an unbiased policy gradient for c = pi / mu whatever Q is, with
    Q as its control variate (doubly robust; Q-Prop, Gu et al. 2017). c is cut off at 1, as in
    V-trace. At the soft optimum G - Q has mean 0: the fixed point stays.

    Args:
      log_probs_bj: log pi of the sampled tokens (differentiable).
      q_taken_bj: Q_theta of the sampled tokens.
      q_target_bj: G, the targets of the regression of Q.
      ratio_bj: pi / mu of the sampled tokens.
      mask_bj: True for real tokens.

    Returns:
      Reward units, 0 where the mask is False; only `log_probs_bj` has a gradient.
    """
    advantage_bj = jnp.minimum(ratio_bj, 1.0) * (q_target_bj - q_taken_bj)
    advantage_bj = jax.lax.stop_gradient(jnp.where(mask_bj, advantage_bj, 0.0))
    return -advantage_bj * jnp.where(mask_bj, log_probs_bj, 0.0)


def is_trusted(
    log_probs_bj: Float[Array, "b j"],
    behaviour_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    trust_region: float | Float[Array, ""],
) -> Bool[Array, "b"]:
    """True for actions in the trust region: |log pi(a) - log mu(a)| <= trust_region.

    Several gradient steps on few programs learn those programs by heart, at a KL to the reference
    that buys nothing; this ends each action's share of the policy's gradient before that. Where
    the policy has stopped moving, pi is mu and nothing is cut off: the fixed point stays.

    Args:
      log_probs_bj: log pi of the sampled tokens.
      behaviour_log_probs_bj: log mu of the sampled tokens.
      mask_bj: True for real tokens.
      trust_region: nats per action.
    """
    moved_b = action_log_ratio(log_probs_bj, behaviour_log_probs_bj, mask_bj)
    return jnp.abs(moved_b) <= trust_region


def uniform_policy_objective(
    policy_logits_bjv: Float[Array, "*b v"],
    q_bjv: Float[Array, "*b v"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "*b"]:
    """Objective of the authors' released code: the plain mean over v of beta log pi - Q.

    Its gradient holds neither Q nor the reward: on the logits it is beta * (1 / V - pi), which
    sharpens pi around its own mode without bound. Kept for reproducing that code, not for use.
    """
    policy_log_probs = jax.nn.log_softmax(policy_logits_bjv.astype(jnp.float32))
    return jnp.mean(beta * policy_log_probs - jax.lax.stop_gradient(q_bjv), axis=-1)
