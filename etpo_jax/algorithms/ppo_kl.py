"""PPO on whole actions with a KL penalty in the reward: the paper's baseline PPO-KL (section 5.2).

An action is one decision: its reward is r - beta log(pi(a) / rho(a)), its credit is one number that
all its tokens share (Eq. 5). Advantages and returns are constants for gradients.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.actor_critic import ActorCritic, ClippedConfig
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.clipped_steps import Scores, state_values
from etpo_jax.algorithms.networks import Critic, Networks
from etpo_jax.config import Config
from etpo_jax.divergence import action_log_ratio
from etpo_jax.registry import register_algorithm
from etpo_jax.settings import option
from etpo_jax.soft_q import final_target


@dataclasses.dataclass(frozen=True)
class PpoKlConfig(ClippedConfig):
    """Settings of PPO-KL."""

    baseline: str = option(
        "value",
        "Baseline of a return: a value network, or the mean return of the other actions "
        "(leave_one_out).",
        choices=("value", "leave_one_out"),
    )

    def check(self, config: Config) -> None:
        super().check(config)
        if self.update.trace != "action":
            raise ValueError(f"--clip_ratio={self.clip_ratio}: only poad has trace=episode")
        if self.update.value_clip is not None and self.baseline != "value":
            raise ValueError(f"--clip_ratio={self.clip_ratio}: value_clip needs --baseline=value")
        num_learning = config.run.num_envs - config.run.num_exploring
        if self.baseline == "leave_one_out" and num_learning * config.run.steps_per_update < 2:
            raise ValueError(
                f"--num_envs={config.run.num_envs}: --baseline=leave_one_out needs at least two "
                "actions per update"
            )


@register_algorithm("ppo_kl")
class PpoKl(ActorCritic):
    """PPO on whole actions, with the KL to the reference in the reward."""

    Settings = PpoKlConfig
    is_per_token = False

    @classmethod
    def has_critic(cls, config: Config) -> bool:
        return config.learning.baseline == "value"

    @classmethod
    def values(
        cls, networks: Networks, base: Any, critic: Critic, batch: Batch
    ) -> Float[Array, "b"]:
        return state_values(networks, base, critic, batch.prompt_tokens_bp, batch.prompt_mask_bp)

    @classmethod
    def worth(
        cls,
        batch: Batch,
        reference_log_prob_bj: Float[Array, "b j"],
        value: Float[Array, "b"] | None,
        next_value_b: Float[Array, "b"],
        num_new: Int[Array, ""],
        hyper: Hyperparameters,
        config: Config,
    ) -> tuple[Array, Array, Array]:
        del config
        # mu, the distribution that was really sampled from, is the old policy of the ratio.
        reward_b = kl_reward(
            batch.reward_b,
            batch.log_probs_bj,
            reference_log_prob_bj,
            batch.action_mask_bj,
            beta=hyper.beta,
        )
        return_b = action_return(reward_b, next_value_b, batch.continues_b, gamma=hyper.gamma)
        if value is None:
            value = leave_one_out(return_b, is_same_state(batch), num_new)
        return return_b - value, return_b, jnp.ones(return_b.shape, jnp.bool_)

    @classmethod
    def log_ratio(cls, scores: Scores, batch: Batch) -> tuple[Array, Array]:
        ratio_b = action_log_ratio(scores.log_prob_bj, batch.log_probs_bj, batch.action_mask_bj)
        return ratio_b, jnp.ones(ratio_b.shape, jnp.bool_)


def is_same_state(batch: Batch) -> Bool[Array, "b b"]:
    """True where two rows have the same prompt."""
    known_bp = jnp.where(batch.prompt_mask_bp, batch.prompt_tokens_bp, -1)
    return jnp.all(known_bp[:, None] == known_bp[None], axis=-1)


def kl_reward(
    reward_b: Float[Array, "b"],
    log_probs_bj: Float[Array, "b j"],
    reference_log_probs_bj: Float[Array, "b j"],
    mask_bj: Bool[Array, "b j"],
    *,
    beta: float | Float[Array, ""],
) -> Float[Array, "b"]:
    """Reward less the KL penalty, r - beta log(pi(a) / rho(a)), in reward units.

    Args:
      reward_b: rewards of whole actions.
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
    """Return of an action: its reward and the discounted value of the next state.

    Args:
      kl_reward_b: rewards less the KL penalty, see `kl_reward`.
      next_state_value_b: values of the next states; ignored, NaN included, where the episode
        ended.
      continues_b: 1 where the episode goes on, 0 where it ended.
      gamma: discount between actions.
    """
    return_b = final_target(next_state_value_b, kl_reward_b, continues_b, gamma)
    return jax.lax.stop_gradient(return_b)


def leave_one_out(
    return_b: Float[Array, "b"],
    is_alike_bb: Bool[Array, "b b"],
    num_distinct: int | Int[Array, ""] | None = None,
) -> Float[Array, "b"]:
    """A baseline without a network: the mean return of the other actions in the same state.

    An action in a state of its own is held against all others. Its own return never counts, nor
    that of a copy of it, which keeps the policy gradient unbiased (Kool et al. 2019).

    Args:
      return_b: returns of at least two actions.
      is_alike_bb: True where two rows have the same state; the diagonal is ignored.
      num_distinct: row i is a copy of row i % num_distinct, as where a small last collection is
        filled up with itself; None if no row is a copy. A single distinct row has baseline 0.

    Raises:
      ValueError: for a single row, which has no others.
    """
    size = return_b.shape[0]
    if size < 2:
        raise ValueError("a leave-one-out baseline needs at least two actions")
    rows_b = jnp.arange(size)
    count = size if num_distinct is None else num_distinct
    # Each distinct row counts once, by its first copy.
    is_other_bb = (rows_b[:, None] % count != rows_b[None] % count) & (rows_b < count)
    alike_bb = is_alike_bb & is_other_bb
    chosen_bb = jnp.where(alike_bb.any(axis=1, keepdims=True), alike_bb, is_other_bb)
    mean_b = chosen_bb @ return_b / jnp.maximum(chosen_bb.sum(axis=1), 1)
    return jax.lax.stop_gradient(mean_b)
