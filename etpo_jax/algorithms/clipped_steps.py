"""Parts of the gradient steps of clipped policy gradients: state, labels, scores and the steps."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.clipped_losses import standardize
from etpo_jax.algorithms.gradients import Backward, Metrics, all_finite, guarded_step, where
from etpo_jax.algorithms.networks import Critic, Networks
from etpo_jax.algorithms.token_scores import in_chunks, of_token, read_policy
from etpo_jax.config import Config
from etpo_jax.divergence import categorical_kl, entropy
from etpo_jax.roles import Role


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActorCriticState:
    """Everything that a gradient step changes.

    Attributes:
      policy: pi_phi.
      critic: the value network, read by its scalar head only; None where there is none.
      policy_optimizer, critic_optimizer: optax states; None without a critic.
      step: gradient steps taken.
    """

    policy: Role
    critic: Critic | None
    policy_optimizer: Any
    critic_optimizer: Any
    step: Int[Array, ""]


class Labels(NamedTuple):
    """Constants of the gradient steps on a collection, from the parameters that sampled it.

    Attributes:
      reference_bjd: hidden states of the reference that score the action tokens.
      advantage: [b] for whole actions, [b, j] for tokens; standardised over the collection, unless
        each minibatch is.
      target: what the value head regresses on, of the same shape, in reward units.
      old_value: the value before the first step, likewise; the target where there is no critic.
    """

    reference_bjd: Float[Array, "b j d"]
    advantage: Float[Array, "*b"]
    target: Float[Array, "*b"]
    old_value: Float[Array, "*b"]


class Scores(NamedTuple):
    """Log pi, log rho, KL and entropy of each action token, in nats.

    Differentiable are log pi, and the entropy where it is part of the loss.
    """

    log_prob_bj: Float[Array, "b j"]
    reference_log_prob_bj: Float[Array, "b j"]
    kl_bj: Float[Array, "b j"]
    entropy_bj: Float[Array, "b j"]


def take_steps(
    transformation: optax.GradientTransformation,
    state: ActorCriticState,
    found: Backward,
    hyper: Hyperparameters,
    key: Key[Array, ""],
    *,
    max_kl: Float[Array, ""] | None = None,
) -> tuple[ActorCriticState, Metrics]:
    """The steps of the policy and then of the value network, if there is one.

    Where the metric `approximate_kl` exceeds `max_kl`, the policy and its optimiser stay as they
    are; the value network takes its step all the same.
    """
    metrics, (policy_gradient, critic_gradient) = found.metrics, found.gradients
    keys = jax.random.split(key)
    policy = guarded_step(
        transformation,
        policy_gradient(None),
        state.policy,
        state.policy_optimizer,
        learning_rate=hyper.policy_learning_rate,
        key=keys[0],
        is_finite=all_finite(metrics),
    )
    metrics["policy_grad_norm"], is_taken = policy.norm, policy.is_taken
    if max_kl is not None:
        is_near = metrics["approximate_kl"] <= max_kl
        kept = where(
            is_near,
            (policy.parameters, policy.optimizer_state),
            (state.policy, state.policy_optimizer),
        )
        policy = policy._replace(parameters=kept[0], optimizer_state=kept[1])
        metrics["skipped_policy_steps"] = 1.0 - is_near.astype(jnp.float32)
    critic, critic_optimizer = state.critic, state.critic_optimizer
    metrics["critic_grad_norm"] = jnp.float32(0)
    if critic is not None:
        moved = guarded_step(
            transformation,
            critic_gradient(policy),
            critic,
            critic_optimizer,
            learning_rate=hyper.critic_learning_rate,
            key=keys[1],
            is_finite=is_taken,
        )
        critic, critic_optimizer, metrics["critic_grad_norm"], is_taken = moved
    metrics["is_finite"] = is_taken.astype(jnp.float32)
    taken = state.step + is_taken.astype(jnp.int32)
    state = ActorCriticState(
        policy.parameters, critic, policy.optimizer_state, critic_optimizer, taken
    )
    return state, metrics


def score_policy(
    networks: Networks,
    config: Config,
    base: Any,
    policy: Role,
    reference_bjd: Float[Array, "b j d"],
    batch: Batch,
    hyper: Hyperparameters,
    *,
    has_entropy_gradient: bool = False,
) -> Scores:
    """Scores of the action tokens under the policy.

    Args:
      networks: how roles are read.
      config: settings of the run; `logits` of `--remat` bounds the logits that exist at a time.
      base: parameters of the reference.
      policy: variables of the policy; differentiable.
      reference_bjd: hidden states of the reference, see `Networks.action_hidden`.
      batch: the actions.
      hyper: temperature and support.
      has_entropy_gradient: whether the entropy is differentiable too.
    """

    def score(inputs: tuple[Array, Array, Array]) -> Scores:
        tokens_bj = inputs[-1]
        policy_bjv, reference_bjv = read_policy(networks, base, policy, *inputs, hyper)
        constant_bjv = jax.lax.stop_gradient(policy_bjv)
        return Scores(
            log_prob_bj=of_token(jax.nn.log_softmax(policy_bjv), tokens_bj),
            reference_log_prob_bj=of_token(jax.nn.log_softmax(reference_bjv), tokens_bj),
            kl_bj=categorical_kl(constant_bjv, reference_bjv),
            entropy_bj=entropy(policy_bjv if has_entropy_gradient else constant_bjv),
        )

    policy_bjd = networks.action_hidden(base, policy, batch)
    inputs = (policy_bjd, reference_bjd, batch.action_tokens_bj)
    scores: Scores = in_chunks(score, inputs, config.model.logits_at_once)
    return scores


def standardize_labels(labels: Labels, mask_bj: Bool[Array, "b j"]) -> Labels:
    """The labels of a minibatch with its advantages standardised, per action or per token."""
    is_per_token = labels.advantage.ndim == 2
    mask = mask_bj if is_per_token else jnp.ones(labels.advantage.shape, jnp.bool_)
    return labels._replace(advantage=standardize(labels.advantage, mask))


def state_values(
    networks: Networks,
    base: Any,
    critic: Critic,
    tokens_bp: Array,
    mask_bp: Array,
    num_blocks: int = 0,
) -> Float[Array, "b"]:
    """Values of states, before any token of an action; arguments as `Networks.state_hidden`."""
    hidden_bd = networks.state_hidden(base, critic.trunk, tokens_bp, mask_bp, num_blocks)
    return networks.head(critic, hidden_bd)


def minibatches(
    size: int, minibatch_size: int, count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields the rows of `count` minibatches: passes in random order, cut into equal pieces.

    A last piece that is too short is filled up from the beginning of its pass.
    """
    rows = np.empty(0, np.int32)
    for _ in range(count):
        if not len(rows):
            rows = rng.permutation(size).astype(np.int32)
            rows = np.resize(rows, -(-size // minibatch_size) * minibatch_size)
        rows, chosen = rows[minibatch_size:], rows[:minibatch_size]
        yield chosen
