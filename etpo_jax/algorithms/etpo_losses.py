"""ETPO's losses, targets and gradients of one minibatch, and its credit of every token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.gradients import (
    Backward,
    Metrics,
    Share,
    Step,
    constrain,
    next_state_values,
    over_devices,
    plus,
    pulled_back,
    with_layers,
    without_layers,
)
from etpo_jax.algorithms.inspection import NUM_ALTERNATIVES, Inspection
from etpo_jax.algorithms.networks import Critic, Networks, TrainState
from etpo_jax.algorithms.token_scores import (
    Hidden,
    Roles,
    TokenScores,
    divergences,
    of_token,
    read_critic,
    read_logits,
    read_reference,
    score_tokens,
)
from etpo_jax.config import Config
from etpo_jax.divergence import masked_mean
from etpo_jax.losses import (
    critic_loss,
    doubly_robust_correction,
    is_trusted,
    path_loss,
    suffix_sums,
)
from etpo_jax.roles import Role
from etpo_jax.soft_q import retrace_targets, soft_value, token_targets

# The settings of ETPO are `etpo_jax.algorithms.etpo.EtpoConfig`, which is named Any here: that
# module imports this one.


def backward(
    networks: Networks,
    config: Config,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
    mesh: Mesh,
    share: Share,
) -> Backward:
    """Losses of critic and policy on a minibatch or on a microbatch of it, and their gradients."""
    learning = config.learning
    next_value_b = next_state_value(networks, learning, base, state, batch, hyper)
    target_critic = None if learning.is_path else state.target_critic
    target_bjd = None
    if target_critic is not None:
        target_bjd = networks.action_hidden(base, target_critic.trunk, batch)
    critic_bjd, critic_back = jax.vjp(
        lambda critic: networks.action_hidden(base, critic.trunk, batch), state.critic
    )
    policy_bjd, policy_back = jax.vjp(
        lambda policy: None if networks.tie_policy else networks.action_hidden(base, policy, batch),
        state.policy,
    )
    reference_bjd = networks.action_hidden(base, {}, batch)

    def loss(
        critic: Critic, critic_bjd: Array, policy: Role, policy_bjd: Array | None
    ) -> tuple[Array, Metrics]:
        scores = score_tokens(
            networks,
            learning,
            base,
            Roles(
                with_layers(policy, state.policy), with_layers(critic, state.critic), target_critic
            ),
            Hidden(reference_bjd, policy_bjd, critic_bjd, target_bjd),
            batch.action_tokens_bj,
            hyper,
            chunk_size=config.model.logits_at_once,
        )
        metrics = losses(learning, scores, batch, next_value_b, hyper, share)
        return metrics["critic_loss"] + metrics["policy_loss"], metrics

    # Scores are read from hidden states and from what is beside the layers, such as output layers.
    (_, metrics), cotangents = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(
        without_layers(state.critic), critic_bjd, without_layers(state.policy), policy_bjd
    )
    critic_direct, critic_cotangent, policy_direct, policy_cotangent = cotangents

    def critic_gradient(step: Step | None) -> Any:
        del step
        return constrain(plus(critic_back(critic_cotangent)[0], critic_direct), mesh)

    def policy_gradient(step: Step | None) -> Any:
        through_trunk = pulled_back(step, policy_back, policy_cotangent, state.policy, mesh)
        return constrain(plus(through_trunk, policy_direct), mesh)

    gradients = (critic_gradient, policy_gradient)
    return Backward(metrics, gradients, kept=policy_cotangent, direct=policy_direct)


def policy_gradient_through_trunk(
    networks: Networks, base: Any, policy: Role, batch: Batch, cotangent_bjd: Float[Array, "b j d"]
) -> Any:
    """The policy's gradient from that of its hidden states, with a forward pass of its own."""
    _, back = jax.vjp(lambda policy: networks.action_hidden(base, policy, batch), policy)
    return back(over_devices(cotangent_bjd))[0]


def losses(
    learning: Any,
    scores: TokenScores,
    batch: Batch,
    next_value_b: Float[Array, "b"],
    hyper: Hyperparameters,
    share: Share,
) -> Metrics:
    """The losses and the scalars that describe them, each weighted with the microbatch's share.

    Args:
      learning: settings of ETPO.
      scores: scores of the action tokens.
      batch: transitions of the microbatch.
      next_value_b: soft values of the next states, reward units.
      hyper: traced numbers of the settings.
      share: share of the minibatch that the microbatch holds.
    """
    mask_bj = batch.action_mask_bj
    policy_objective_bj = scores.policy_objective_bj
    if learning.is_path:
        target_b = batch.reward_b + hyper.gamma * batch.continues_b * next_value_b
        starts = "root" if learning.regression == "path_root" else "all"
        critic_objective = path_loss(
            scores.state_value_bj,
            scores.log_ratio_bj,
            target_b,
            mask_bj,
            beta=hyper.beta,
            starts=starts,  # type: ignore[arg-type]
        )
        critic_share = share.actions if starts == "root" else share.tokens
        target_mean = jnp.mean(target_b) * share.actions
    else:
        target_bj = targets(learning, scores, batch, next_value_b, hyper)
        critic_objective = critic_loss(
            scores.q_bj, target_bj, mask_bj, huber_delta=learning.huber_delta
        )
        if learning.policy_loss == "doubly_robust":
            policy_objective_bj += doubly_robust_correction(
                scores.log_prob_bj, scores.q_bj, target_bj, _ratio(scores, batch), mask_bj
            )
        critic_share = share.tokens
        target_mean = masked_mean(target_bj, mask_bj) * share.tokens
    is_trusted_b = is_trusted(
        scores.log_prob_bj, batch.log_probs_bj, mask_bj, trust_region=hyper.trust_region
    )
    policy_objective_bj = jnp.where(
        is_trusted_b[:, None], policy_objective_bj, jax.lax.stop_gradient(policy_objective_bj)
    )
    per_action = divergences(scores.kl_bj, scores.entropy_bj, batch) | {
        "clipped_share": 1.0 - jnp.mean(is_trusted_b.astype(jnp.float32))
    }
    return {
        "critic_loss": critic_objective * critic_share,
        "policy_loss": masked_mean(policy_objective_bj, mask_bj) * share.tokens,
        "target_mean": target_mean,
        **{name: value * share.actions for name, value in per_action.items()},
    }


def targets(
    learning: Any,
    scores: TokenScores,
    batch: Batch,
    next_value_b: Float[Array, "b"],
    hyper: Hyperparameters,
) -> Float[Array, "b j"]:
    """Targets of the critic's regression at every token, in reward units; arguments as `losses`.

    For path consistency they are the values before each token that the reward and the rest of the
    action imply.
    """
    mask_bj = batch.action_mask_bj
    if learning.is_path:
        rest_bj = suffix_sums(scores.log_ratio_bj, mask_bj)
        target_b = batch.reward_b + hyper.gamma * batch.continues_b * next_value_b
        return jnp.where(mask_bj, target_b[:, None] - hyper.beta * rest_bj, 0.0)
    outcome = (next_value_b, batch.reward_b, batch.continues_b, mask_bj)
    discounts = {"gamma": hyper.gamma, "gamma_within": hyper.gamma_within}
    if learning.regression == "one_step":
        return token_targets(scores.value_bj, *outcome, **discounts)
    return retrace_targets(
        scores.value_bj,
        scores.target_q_bj,
        _ratio(scores, batch),
        *outcome,
        **discounts,
        lambda_within=hyper.lambda_within,
    )


def _ratio(scores: TokenScores, batch: Batch) -> Float[Array, "b j"]:
    """min(1, pi / mu) of the sampled tokens."""
    return jnp.exp(jnp.minimum(scores.log_prob_bj - batch.log_probs_bj, 0.0))


def next_state_value(
    networks: Networks,
    learning: Any,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
) -> Float[Array, "b"]:
    """Values of the next states under the target critic, in reward units; 0 after the end.

    They are soft values of pi, or for path consistency of the policy that Q implies.
    """

    def value(tokens_bp: Array, mask_bp: Array, num_blocks: int) -> Array:
        def last_hidden(role: Role) -> Array:
            return networks.state_hidden(base, role, tokens_bp, mask_bp, num_blocks)

        target = state.target_critic
        if networks.q_parameterization == "policy":
            # Q is v + beta log(pi / rho), whose soft value under pi is v.
            return networks.head(target, last_hidden(target.trunk))
        reference = hyper.distribution.reference(networks.logits(base, {}, last_hidden({})))
        soft_q, _ = read_critic(
            networks, base, target, last_hidden(target.trunk), None, reference, hyper
        )
        if learning.is_path:
            return soft_q.value_bj
        trunk = networks.policy_trunk(state.policy, state.critic)
        policy_bv = read_logits(networks, base, trunk, last_hidden(trunk), reference, hyper)
        return soft_value(policy_bv, reference.logits_bjv, soft_q.q_bjv, beta=hyper.beta)

    return next_state_values(batch, value)


Inspect = Callable[[TrainState, Any, Batch, Hyperparameters], Inspection]


def make_inspect(networks: Networks, config: Config) -> Inspect:
    """Makes the jitted (state, base, batch, hyperparameters) -> inspection; it learns nothing."""
    learning = config.learning

    def inspect(state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters) -> Inspection:
        tokens_bj = batch.action_tokens_bj
        hidden = Hidden(
            networks.action_hidden(base, {}, batch),
            None if networks.tie_policy else networks.action_hidden(base, state.policy, batch),
            networks.action_hidden(base, state.critic.trunk, batch),
            networks.action_hidden(base, state.target_critic.trunk, batch),
        )
        roles = Roles(state.policy, state.critic, state.target_critic)
        scores = score_tokens(networks, learning, base, roles, hidden, tokens_bj, hyper)
        next_value_b = next_state_value(networks, learning, base, state, batch, hyper)
        read = (networks, base)
        reference = read_reference(*read, hidden.reference_bjd, tokens_bj, hyper)
        trunk = networks.policy_trunk(state.policy, state.critic)
        policy_bjd = hidden.critic_bjd if hidden.policy_bjd is None else hidden.policy_bjd
        policy_bjv = read_logits(*read, trunk, policy_bjd, reference, hyper)
        soft_q, _ = read_critic(
            *read, state.critic, hidden.critic_bjd, policy_bjv, reference, hyper
        )
        top_probs_bjk, top_tokens_bjk = jax.lax.top_k(jax.nn.softmax(policy_bjv), NUM_ALTERNATIVES)
        return Inspection(
            q_bj=scores.q_bj,
            value_bj=scores.state_value_bj if learning.is_path else scores.value_bj,
            target_bj=targets(learning, scores, batch, next_value_b, hyper),
            log_prob_bj=scores.log_prob_bj,
            log_reference_bj=of_token(jax.nn.log_softmax(reference.logits_bjv), tokens_bj),
            kl_bj=scores.kl_bj,
            top_tokens_bjk=top_tokens_bjk,
            top_probs_bjk=top_probs_bjk,
            top_q_bjk=jnp.take_along_axis(soft_q.q_bjv, top_tokens_bjk, axis=-1),
        )

    return jax.jit(inspect)
