"""Gradient steps of the two policy-gradient baselines, PPO-KL and POAD, over the same networks.

Both learn from each collection alone: what actions were worth is computed once, with the parameters
that sampled them (`make_labels`), and several steps follow the clipped surrogate (`make_step`). The
formulas are in `ppo_kl` and `poad`. The value network is a trunk of its own, started from rho as
ETPO's critic is, with a scalar head in place of the vocabulary's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import optimizer, poad, ppo_kl
from etpo_jax.algorithms.etpo import (
    Metrics,
    action_hidden,
    constrain,
    divergences,
    initial_key,
    over_devices,
    where,
)
from etpo_jax.algorithms.hyperparameters import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.token_scores import in_chunks
from etpo_jax.algorithms.train_state import Critic
from etpo_jax.config import Config
from etpo_jax.divergence import action_log_ratio, categorical_kl, entropy, masked_mean
from etpo_jax.roles import Role


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActorCriticState:
    """Everything that a gradient step changes.

    Attributes:
      policy: pi_phi.
      critic: the value network, read by its scalar head only; None with a leave-one-out baseline.
      policy_optimizer, critic_optimizer: optax states; None without a critic.
      step: gradient steps taken.
    """

    policy: Role
    critic: Critic | None
    policy_optimizer: Any
    critic_optimizer: Any
    step: Int[Array, ""]


class Labels(NamedTuple):
    """What a collection's actions were worth under the policy that sampled them; constants.

    Attributes:
      reference_bjd: hidden states of the reference that score the action tokens.
      advantage: standardised; [b] for whole actions, [b, j] for tokens.
      target: what the value head regresses on, of the same shape, in reward units.
    """

    reference_bjd: Float[Array, "b j d"]
    advantage: Float[Array, "*b"]
    target: Float[Array, "*b"]


class _Scores(NamedTuple):
    """Of each action token: log pi (differentiable), log rho, KL and entropy, in nats."""

    log_prob_bj: Float[Array, "b j"]
    reference_log_prob_bj: Float[Array, "b j"]
    kl_bj: Float[Array, "b j"]
    entropy_bj: Float[Array, "b j"]


LabelCollection = Callable[[ActorCriticState, Any, Batch, Hyperparameters], Labels]
Step = Callable[
    [ActorCriticState, Any, Batch, Labels, Int[Array | np.ndarray, "m"], Hyperparameters],
    tuple[ActorCriticState, Metrics],
]


def initial_state(networks: Networks, base: Any, config: Config) -> ActorCriticState:
    """Policy and value network start as rho, the value head as 0."""
    policy_key, critic_key = jax.random.split(initial_key(config))
    transformation = optimizer.build(config.optimizer, momentum_dtype=networks.trained_dtype)
    policy = networks.initial_policy(base, policy_key)
    critic = networks.initial_critic(base, critic_key) if _has_critic(config) else None
    return ActorCriticState(
        policy=policy,
        critic=critic,
        policy_optimizer=optimizer.initial(transformation, policy),
        critic_optimizer=None if critic is None else optimizer.initial(transformation, critic),
        step=jnp.zeros((), jnp.int32),
    )


def make_labels(networks: Networks, config: Config) -> LabelCollection:
    """The jitted (state, base, collection, hyperparameters) -> labels of all its actions."""
    of_tokens = config.run.algorithm == "poad"

    def labels(state: ActorCriticState, base: Any, batch: Batch, hyper: Hyperparameters) -> Labels:
        batch = jax.tree.map(over_devices, batch)
        mask_bj = batch.action_mask_bj
        reference_bjd = action_hidden(networks, base, {}, batch)
        policy_bjd = action_hidden(networks, base, state.policy, batch)
        scores = _score(
            networks, config, base, state.policy, policy_bjd, reference_bjd, batch, hyper
        )
        # mu, the distribution that was really sampled from, is the old policy of the ratio.
        log_probs = (batch.log_probs_bj, scores.reference_log_prob_bj, mask_bj)
        next_value_b = _next_state_value(networks, base, state.critic, batch)
        if of_tokens:
            assert state.critic is not None  # POAD always has one
            value_bj = _token_values(networks, base, state.critic, batch)
            advantage = poad.lambda_advantages(
                poad.token_rewards(batch.reward_b, *log_probs, beta=hyper.beta),
                value_bj,
                next_value_b,
                batch.continues_b,
                mask_bj,
                gamma=hyper.gamma,
                gamma_within=hyper.gamma_within,
                gae_lambda=hyper.gae_lambda,
            )
            target, mask = value_bj + advantage, mask_bj
        else:
            target = ppo_kl.action_return(
                ppo_kl.kl_reward(batch.reward_b, *log_probs, beta=hyper.beta),
                next_value_b,
                batch.continues_b,
                gamma=hyper.gamma,
            )
            if state.critic is None:
                baseline_b = ppo_kl.leave_one_out(target, _is_same_state(batch))
            else:
                baseline_b = _state_values(networks, base, state.critic, batch)
            advantage, mask = target - baseline_b, jnp.ones(target.shape, jnp.bool_)
        return jax.lax.stop_gradient(
            Labels(reference_bjd, ppo_kl.standardize(advantage, mask), target)
        )

    return jax.jit(labels)


def make_step(networks: Networks, config: Config, mesh: Mesh) -> Step:
    """The jitted (state, base, collection, labels, rows, hyperparameters) -> (state, metrics).

    `rows` are the transitions of the minibatch. The state is donated; metrics are as those of
    `etpo`, `critic_loss` is the value head's and `clipped_share` says how much of the
    minibatch had left the trust region.
    """
    transformation = optimizer.build(config.optimizer, momentum_dtype=networks.trained_dtype)

    def step(
        state: ActorCriticState,
        base: Any,
        batch: Batch,
        labels: Labels,
        rows_m: Int[Array, "m"],
        hyper: Hyperparameters,
    ) -> tuple[ActorCriticState, Metrics]:
        batch, labels = jax.tree.map(lambda leaf: over_devices(leaf[rows_m]), (batch, labels))
        (policy_gradient, critic_gradient), metrics = _gradients(
            networks, config, base, state, batch, labels, hyper, mesh
        )
        metrics["policy_grad_norm"] = _norm(policy_gradient)
        metrics["critic_grad_norm"] = _norm(critic_gradient)
        is_finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        keys = jax.random.split(jax.random.fold_in(initial_key(config), state.step))
        policy, policy_optimizer = optimizer.step(
            transformation,
            policy_gradient,
            state.policy_optimizer,
            state.policy,
            optimizer.warmed_up(
                hyper.policy_learning_rate, state.step, config.optimizer.policy_warmup_steps
            ),
            keys[0],
        )
        critic, critic_optimizer = state.critic, state.critic_optimizer
        if state.critic is not None:
            critic, critic_optimizer = optimizer.step(
                transformation,
                critic_gradient,
                state.critic_optimizer,
                state.critic,
                hyper.critic_learning_rate,
                keys[1],
            )
        proposed = ActorCriticState(
            policy, critic, policy_optimizer, critic_optimizer, state.step + 1
        )
        metrics["is_finite"] = is_finite.astype(jnp.float32)
        return constrain(where(is_finite, proposed, state), mesh), metrics

    return jax.jit(step, donate_argnums=0)


def _gradients(
    networks: Networks,
    config: Config,
    base: Any,
    state: ActorCriticState,
    batch: Batch,
    labels: Labels,
    hyper: Hyperparameters,
    mesh: Mesh,
) -> tuple[tuple[Role, Critic | None], Metrics]:
    """Gradients of policy and value network, in microbatches if so configured, and metrics."""
    trained = (state.policy, state.critic)
    whole = batch.reward_b.shape[0]
    size = config.finetune.microbatch_size or whole
    num_tokens = jnp.sum(batch.action_mask_bj)

    def of_part(part: tuple[Batch, Labels]) -> tuple[Any, Metrics]:
        batch, labels = jax.tree.map(over_devices, part)
        tokens = jnp.sum(batch.action_mask_bj) / num_tokens

        def loss(trained: tuple[Role, Critic | None]) -> tuple[Array, Metrics]:
            metrics = _losses(networks, config, base, trained, batch, labels, hyper)
            # Means over tokens and over actions, as parts of those of the minibatch.
            of_tokens = config.run.algorithm == "poad"
            weights = {
                name: tokens if of_tokens and name in _PER_ENTRY else size / whole
                for name in metrics
            }
            metrics = {name: value * weights[name] for name, value in metrics.items()}
            return metrics["policy_loss"] + metrics["critic_loss"], metrics

        gradients, metrics = jax.grad(loss, has_aux=True)(trained)
        # Gradients do not inherit the sharding of what they belong to.
        return constrain(gradients, mesh), metrics

    if size == whole:
        return of_part((batch, labels))
    count = whole // size
    # Every microbatch is spread over all devices.
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(size, count, *leaf.shape[1:]).swapaxes(0, 1), (batch, labels)
    )

    def add(sums: Any, part: tuple[Batch, Labels]) -> tuple[Any, Metrics]:
        gradients, metrics = of_part(part)
        return constrain(jax.tree.map(jnp.add, sums, gradients), mesh), metrics

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
    gradients, metrics = jax.lax.scan(add, constrain(zeros, mesh), parts)
    return gradients, {name: jnp.sum(values) for name, values in metrics.items()}


_PER_ENTRY = ("policy_loss", "critic_loss", "target_mean", "clipped_share")


def _losses(
    networks: Networks,
    config: Config,
    base: Any,
    trained: tuple[Role, Critic | None],
    batch: Batch,
    labels: Labels,
    hyper: Hyperparameters,
) -> Metrics:
    policy, critic = trained
    policy_bjd = action_hidden(networks, base, policy, batch)
    scores = _score(networks, config, base, policy, policy_bjd, labels.reference_bjd, batch, hyper)
    mask: Bool[Array, "*b"]
    if config.run.algorithm == "poad":
        assert critic is not None  # POAD always has one
        mask = batch.action_mask_bj
        log_ratio = scores.log_prob_bj - batch.log_probs_bj
        value = _token_values(networks, base, critic, batch)
    else:
        mask = jnp.ones(batch.reward_b.shape, jnp.bool_)
        log_ratio = action_log_ratio(scores.log_prob_bj, batch.log_probs_bj, batch.action_mask_bj)
        value = labels.target if critic is None else _state_values(networks, base, critic, batch)
    return {
        "policy_loss": ppo_kl.clipped_surrogate(
            log_ratio, labels.advantage, mask, clip_ratio=hyper.clip_ratio
        ),
        "critic_loss": ppo_kl.value_loss(value, labels.target, mask),
        "target_mean": masked_mean(labels.target, mask),
        "clipped_share": ppo_kl.clipped_share(log_ratio, mask, clip_ratio=hyper.clip_ratio),
        **divergences(scores.kl_bj, scores.entropy_bj, batch),
    }


def _score(
    networks: Networks,
    config: Config,
    base: Any,
    policy: Role,
    policy_bjd: Array,
    reference_bjd: Array,
    batch: Batch,
    hyper: Hyperparameters,
) -> _Scores:
    distribution = hyper.distribution

    def score(inputs: tuple[Array, Array, Array]) -> _Scores:
        policy_bjd, reference_bjd, tokens_bj = inputs
        raw_bjv = networks.logits(base, {}, reference_bjd)
        support_bjv = distribution.support(raw_bjv)
        # A sampled token was in the support, whatever rounding elsewhere says at its edge.
        support_bjv |= jax.nn.one_hot(tokens_bj, raw_bjv.shape[-1], dtype=jnp.bool_)
        reference_bjv = distribution.logits(raw_bjv, support_bjv)
        policy_bjv = distribution.logits(networks.logits(base, policy, policy_bjd), support_bjv)
        constant_bjv = jax.lax.stop_gradient(policy_bjv)
        return _Scores(
            log_prob_bj=_of_token(jax.nn.log_softmax(policy_bjv), tokens_bj),
            reference_log_prob_bj=_of_token(jax.nn.log_softmax(reference_bjv), tokens_bj),
            kl_bj=categorical_kl(constant_bjv, reference_bjv),
            entropy_bj=entropy(constant_bjv),
        )

    inputs = (policy_bjd, reference_bjd, batch.action_tokens_bj)
    scores: _Scores = in_chunks(score, inputs, config.finetune.loss_chunk_size)
    return scores


def _token_values(networks: Networks, base: Any, critic: Critic, batch: Batch) -> Array:
    """V [b, j] just before each token of the actions."""
    return networks.head(critic, action_hidden(networks, base, critic.trunk, batch))


def _state_values(networks: Networks, base: Any, critic: Critic, batch: Batch) -> Array:
    """V [b] of the states, before any token."""
    tokens_bp, mask_bp = batch.prompt_tokens_bp, batch.prompt_mask_bp
    return networks.head(
        critic, networks.hidden(base, critic.trunk, tokens_bp, mask_bp, last=1)[:, 0]
    )


def _next_state_value(
    networks: Networks, base: Any, critic: Critic | None, batch: Batch
) -> Float[Array, "b"]:
    """V [b] of the next states; 0 where the episode ended, and everywhere without a critic."""
    if critic is None:
        return jnp.zeros_like(batch.reward_b)

    def value(batch: Batch) -> Array:
        tokens, mask = batch.next_prompt_tokens_bp, batch.next_prompt_mask_bp
        return networks.head(
            critic, networks.hidden(base, critic.trunk, tokens, mask, last=1)[:, 0]
        )

    value_b = jax.lax.cond(
        jnp.any(batch.continues_b > 0),
        value,
        lambda batch: jnp.zeros_like(batch.reward_b),
        batch,
    )
    return jnp.where(batch.continues_b > 0, value_b, 0.0)


def _is_same_state(batch: Batch) -> Bool[Array, "b b"]:
    """Whether two rows have the same prompt."""
    tokens_bp, mask_bp = batch.prompt_tokens_bp, batch.prompt_mask_bp
    known_bp = jnp.where(mask_bp, tokens_bp, -1)
    return jnp.all(known_bp[:, None] == known_bp[None], axis=-1)


def _has_critic(config: Config) -> bool:
    return config.run.algorithm == "poad" or config.learning.baseline == "value"


def _norm(gradient: Any) -> Array:
    return optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradient))


def _of_token(values_bjv: Array, tokens_bj: Array) -> Array:
    return jnp.take_along_axis(values_bjv, tokens_bj[..., None], axis=-1)[..., 0]
