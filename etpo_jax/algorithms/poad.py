"""Policy optimisation with action decomposition (POAD, arXiv 2405.15821), the authors' follow-up.

Every token is a decision with a value and a clipped ratio of its own; credit goes back by
lambda-returns, undiscounted inside an action and with gamma between actions. The KL to the
reference is in the rewards token by token, so that all algorithms here maximise the objective of
Eq. 2; beta 0 is POAD without it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.actor_critic import ActorCritic, ClippedConfig
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.clipped_steps import Scores
from etpo_jax.algorithms.networks import Critic, Networks
from etpo_jax.config import Config
from etpo_jax.registry import register_algorithm
from etpo_jax.settings import option
from etpo_jax.soft_q import final_target, is_last_token


@dataclasses.dataclass(frozen=True)
class PoadConfig(ClippedConfig):
    """Settings of POAD."""

    gamma_within: float = option(
        1.0, "Discount between the tokens of an action.", lower=0.0, upper=1.0, traced=True
    )
    lambda_within: float = option(
        0.95,
        "Weight of later errors along the action (the lambda of generalised advantages); 1 is the "
        "whole action's return.",
        lower=0.0,
        upper=1.0,
        traced=True,
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if self.update.trace == "episode" and config.run.explore:
            raise ValueError(
                f"--explore={config.run.explore}: trace=episode of --clip_ratio needs all "
                "environments to be learnt from"
            )


@register_algorithm("poad")
class Poad(ActorCritic):
    """Policy gradient with values, advantages and clipped ratios of tokens."""

    Settings = PoadConfig
    is_per_token = True

    @classmethod
    def values(
        cls, networks: Networks, base: Any, critic: Critic, batch: Batch
    ) -> Float[Array, "b j"]:
        return networks.head(critic, networks.action_hidden(base, critic.trunk, batch))

    @classmethod
    def worth(
        cls,
        batch: Batch,
        reference_log_prob_bj: Float[Array, "b j"],
        value: Float[Array, "b j"] | None,
        next_value_b: Float[Array, "b"],
        num_new: Int[Array, ""],
        hyper: Hyperparameters,
        config: Config,
    ) -> tuple[Array, Array, Array]:
        assert value is not None  # POAD always has a critic
        mask_bj = batch.action_mask_bj
        advantage_bj = lambda_advantages(
            token_rewards(
                batch.reward_b,
                batch.log_probs_bj,
                reference_log_prob_bj,
                mask_bj,
                beta=hyper.beta,
            ),
            value,
            next_value_b,
            batch.continues_b,
            mask_bj,
            gamma=hyper.gamma,
            gamma_within=hyper.gamma_within,
            lambda_within=hyper.lambda_within,
        )
        if config.learning.update.trace == "episode":
            advantage_bj = continue_traces(
                advantage_bj,
                batch.continues_b,
                mask_bj,
                num_new,
                num_envs=config.run.num_envs,
                gamma=hyper.gamma,
                gamma_within=hyper.gamma_within,
                lambda_within=hyper.lambda_within,
            )
        return advantage_bj, value + advantage_bj, mask_bj

    @classmethod
    def log_ratio(cls, scores: Scores, batch: Batch) -> tuple[Array, Array]:
        return scores.log_prob_bj - batch.log_probs_bj, batch.action_mask_bj


def token_rewards(
    reward_b: Float[Array, "b"],
    log_probs_bj: Float[Array, "b j"],
    reference_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """Rewards of tokens: -beta log(pi(w_j) / rho(w_j)), and at the last token the action's reward.

    They add up to `etpo_jax.algorithms.ppo_kl.kl_reward`.

    Args:
      reward_b: rewards of whole actions.
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
    lambda_within: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """Generalised advantages of tokens; plus `value_bj` they are the lambda-returns.

    delta_j = r_j + gamma_within V_{j+1} - V_j, at the last token r + gamma continues V'_0 - V_j,
    and A_j = delta_j + gamma_within lambda_within A_{j+1}. The trace ends with the action, whose
    successor is bootstrapped: transitions are learnt from one by one.

    Args:
      token_reward_bj: rewards of tokens, see `token_rewards`.
      value_bj: V just before token j.
      next_state_value_b: V before the first token in the next state; ignored, NaN included, where
        `continues_b` is 0.
      continues_b: 1 where the episode goes on, 0 where it ended.
      mask_bj: True for the tokens of the action; they come first (right padding).
      gamma: discount between actions.
      gamma_within: discount inside an action; 1 in POAD.
      lambda_within: weight of later errors, in [0, 1]; 1 is the whole action's return.

    Returns:
      [b, j] in reward units; 0 where the mask is False. Gradients are stopped.
    """
    # The reward of the action is among those of its tokens.
    final_b = final_target(next_state_value_b, jnp.zeros_like(continues_b), continues_b, gamma)
    following_bj = jnp.concatenate([value_bj[:, 1:], jnp.zeros_like(value_bj[:, :1])], axis=1)
    following_bj = jnp.where(is_last_token(mask_bj), final_b[:, None], gamma_within * following_bj)
    error_bj = jnp.where(mask_bj, token_reward_bj + following_bj - value_bj, 0.0)

    def backward(carry_b, error_b):
        advantage_b = error_b + gamma_within * lambda_within * carry_b
        return advantage_b, advantage_b

    # Padding comes last and has error 0, so it carries nothing into the action.
    _, advantage_jb = jax.lax.scan(
        backward, jnp.zeros_like(final_b), jnp.swapaxes(error_bj, 0, 1), reverse=True
    )
    return jax.lax.stop_gradient(jnp.swapaxes(advantage_jb, 0, 1))


def continue_traces(
    advantage_bj: Float[Array, "b j"],
    continues_b: Float[Array, "b"],
    mask_bj: Bool[Array, "b j"],
    num_new: int | Int[Array, ""],
    *,
    num_envs: int,
    gamma: float | Float[Array, ""],
    gamma_within: float | Float[Array, ""] = 1.0,
    lambda_within: float | Float[Array, ""],
) -> Float[Array, "b j"]:
    """Advantages whose trace goes on through the actions of an episode, from those of each action.

    At the last token of an action A = delta + gamma lambda continues A', A' the advantage of the
    first token of the episode's next action in the collection, 0 if there is none. The authors'
    code of POAD does this. A' reaches token j weighted with (gamma_within lambda)^(n - 1 - j) more.

    Args:
      advantage_bj: result of `lambda_advantages`.
      continues_b: 1 where the episode goes on, 0 where it ended.
      mask_bj: True for the tokens of the action; they come first (right padding).
      num_new: row i is a copy of row i % num_new.
      num_envs: episodes side by side; the next action of row i's episode is row i + num_envs. The
        number of rows is a multiple of it.
      gamma, gamma_within, lambda_within: as in `lambda_advantages`.

    Returns:
      [b, j] in reward units; 0 where the mask is False.
    """
    b, j = advantage_bj.shape
    row_b = jnp.arange(b)
    weight_b = jnp.where(row_b + num_envs < num_new, gamma * lambda_within * continues_b, 0.0)
    left_bj = jnp.sum(mask_bj, axis=1, keepdims=True) - 1 - jnp.arange(j)
    decay_bj = jnp.where(mask_bj, (gamma_within * lambda_within) ** jnp.maximum(left_bj, 0), 0.0)

    def backward(following_e, columns):
        first_e, decay_e, weight_e = columns
        carried_e = weight_e * following_e
        return first_e + decay_e * carried_e, carried_e

    steps = (advantage_bj[:, 0], decay_bj[:, 0], weight_b)
    columns = jax.tree.map(lambda x: x.reshape(b // num_envs, num_envs), steps)
    _, carried_te = jax.lax.scan(backward, jnp.zeros(num_envs), columns, reverse=True)
    found_bj = advantage_bj + decay_bj * carried_te.reshape(b, 1)
    return jax.lax.stop_gradient(found_bj[row_b % num_new])
