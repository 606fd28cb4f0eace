"""One gradient step of Algorithm 1 as one program: score, targets, critic, policy, target critic.

All four networks are scored in one pass over the batch, with the parameters as they stood before
the step, so that logits never leave the device. The policy's loss therefore reads the critic before
its own step, where Algorithm 1 writes them one after the other.

Memory: both forward passes are followed by the critic's backward pass and step, then the policy's,
so that one gradient is alive at a time. With microbatches the sums of both gradients are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import optimizer
from etpo_jax.algorithms.hyperparameters import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.token_scores import Hidden, Roles, TokenScores, read_critic, score_tokens
from etpo_jax.algorithms.train_state import Critic, TrainState, polyak
from etpo_jax.config import Config, LearningConfig
from etpo_jax.divergence import categorical_kl, entropy, masked_mean
from etpo_jax.losses import (
    critic_loss,
    doubly_robust_correction,
    is_trusted,
    path_loss,
    suffix_sums,
)
from etpo_jax.roles import Role
from etpo_jax.soft_q import retrace_targets, soft_value, token_targets
from models import sharding

Metrics = dict[str, Float[Array, ""]]
UpdateStep = Callable[[TrainState, Any, Batch, Hyperparameters], tuple[TrainState, Metrics]]


class NonFiniteError(Exception):
    """A loss or a gradient is NaN or infinite; a network whose gradient is took no step."""


def initial_state(networks: Networks, base: Any, config: Config) -> TrainState:
    """Algorithm 1's initialisation: every network starts as rho."""
    policy_key, critic_key = jax.random.split(initial_key(config))
    policy = networks.initial_policy(base, policy_key)
    critic = networks.initial_critic(base, critic_key)
    transformation = _transformation(networks, config)
    return TrainState(
        policy=policy,
        critic=critic,
        target_critic=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), critic),
        policy_optimizer=optimizer.initial(transformation, policy),
        critic_optimizer=optimizer.initial(transformation, critic),
        step=jnp.zeros((), jnp.int32),
    )


def make_update_step(networks: Networks, config: Config, mesh: Mesh) -> UpdateStep:
    """The jitted step (state, base, batch, hyperparameters) -> (state, metrics).

    The state is donated. Metrics are float32 scalars; `is_finite` 0 means that a network, or both,
    kept the values from before. `kl_to_reference` and `entropy` are nats per action, summed over
    its tokens; `clipped_share` is that of the actions outside the trust region.
    """
    transformation = _transformation(networks, config)

    def update_step(
        state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(initial_key(config), state.step))
        batch = jax.tree.map(over_devices, batch)
        backward = _backward(networks, config, base, state, batch, hyper, mesh)
        metrics = backward.metrics
        is_finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))

        def step(
            gradients: Any, parameters: Any, optimizer_state: Any, rate: Array, key: Array
        ) -> tuple[Any, Any, Array, Array]:
            norm = optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients))
            is_taken = is_finite & jnp.isfinite(norm)
            proposed = optimizer.step(
                transformation, gradients, optimizer_state, parameters, rate, key
            )
            kept = where(is_taken, proposed, (parameters, optimizer_state))
            return *kept, norm, is_taken

        critic, critic_optimizer, metrics["critic_grad_norm"], is_finite = step(
            backward.critic_gradient(),
            state.critic,
            state.critic_optimizer,
            hyper.critic_learning_rate,
            keys[0],
        )
        target_critic = where(
            is_finite,
            polyak(state.target_critic, critic, hyper.polyak_lambda),
            state.target_critic,
        )
        policy, policy_optimizer, metrics["policy_grad_norm"], is_finite = step(
            backward.policy_gradient(critic),
            state.policy,
            state.policy_optimizer,
            optimizer.warmed_up(
                hyper.policy_learning_rate, state.step, config.optimizer.policy_warmup_steps
            ),
            keys[1],
        )
        metrics["is_finite"] = is_finite.astype(jnp.float32)
        state = TrainState(
            policy=policy,
            critic=critic,
            target_critic=target_critic,
            policy_optimizer=policy_optimizer,
            critic_optimizer=critic_optimizer,
            step=state.step + is_finite.astype(jnp.int32),
        )
        return constrain(state, mesh), metrics

    return jax.jit(update_step, donate_argnums=0)


def make_targets(
    networks: Networks, config: Config
) -> Callable[[TrainState, Any, Batch, Hyperparameters], Float[Array, "b j"]]:
    """The jitted (state, base, batch, hyperparameters) -> targets of every token, no gradient.

    What a gradient step computes for itself, for those that are computed at collection.
    """

    def targets(
        state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters
    ) -> Float[Array, "b j"]:
        batch = jax.tree.map(over_devices, batch)
        learning = config.learning
        next_value_b = next_state_value(networks, learning, base, state, batch, hyper)
        scores = score_tokens(
            networks,
            learning,
            base,
            Roles(state.policy, state.critic, state.target_critic),
            hidden_states(networks, base, state, batch),
            batch.action_tokens_bj,
            hyper,
            chunk_size=config.finetune.loss_chunk_size,
        )
        return targets_of(learning, scores, batch, next_value_b, hyper)

    return jax.jit(targets)


def make_measure(
    networks: Networks,
) -> Callable[[Any, Role, Batch, Hyperparameters], Metrics]:
    """The jitted (base, policy trunk, batch, hyperparameters) -> KL and entropy."""

    def measure(base: Any, trunk: Role, batch: Batch, hyper: Hyperparameters) -> Metrics:
        reference_bjv = networks.logits(base, {}, action_hidden(networks, base, {}, batch))
        support_bjv = hyper.distribution.support(reference_bjv)
        policy_bjv = networks.logits(base, trunk, action_hidden(networks, base, trunk, batch))
        policy_bjv = hyper.distribution.logits(policy_bjv, support_bjv)
        reference_bjv = hyper.distribution.logits(reference_bjv, support_bjv)
        return divergences(categorical_kl(policy_bjv, reference_bjv), entropy(policy_bjv), batch)

    return jax.jit(measure)


def constrain(tree: Any, mesh: Mesh) -> Any:
    """Inside jit: every leaf lies as the partition table says."""
    return jax.lax.with_sharding_constraint(tree, sharding.shardings(tree, mesh))


def check_finite(metrics: dict[str, np.ndarray], step: int) -> None:
    """Raises NonFiniteError, naming what was not finite, if the step was not taken."""
    if metrics["is_finite"]:
        return
    broken = [name for name, value in metrics.items() if not np.isfinite(value)]
    raise NonFiniteError(
        f"gradient step {step} gave a non-finite {', '.join(broken)}; checkpoints hold the state "
        "before it. Try a lower learning rate, a larger --beta or --dtype=float32"
    )


def action_hidden(networks: Networks, base: Any, role: Role, batch: Batch) -> Array:
    """Hidden states [b, j, d] that score the action tokens."""
    tokens_bs = jnp.concatenate([batch.prompt_tokens_bp, batch.action_tokens_bj], axis=1)
    mask_bs = jnp.concatenate([batch.prompt_mask_bp, batch.action_mask_bj], axis=1)
    # The last position of the prompt scores the first token; the last token scores nothing.
    last = batch.action_tokens_bj.shape[1] + 1
    return networks.hidden(base, role, tokens_bs, mask_bs, last=last)[:, :-1]


def hidden_states(networks: Networks, base: Any, state: TrainState, batch: Batch) -> Hidden:
    """Those of all four networks, without a way back to their parameters."""

    def hidden(role: Role) -> Array:
        return action_hidden(networks, base, role, batch)

    return Hidden(
        hidden({}),
        None if networks.tie_policy else hidden(state.policy),
        hidden(state.critic.trunk),
        hidden(state.target_critic.trunk),
    )


class _Backward(NamedTuple):
    """Losses and the way to their gradients.

    Attributes:
      metrics: losses, mean target, KL and entropy.
      critic_gradient: makes the critic's gradient.
      policy_gradient: makes the policy's, after its argument has been computed.
    """

    metrics: Metrics
    critic_gradient: Callable[[], Critic]
    policy_gradient: Callable[[Any], Role]


class _Share(NamedTuple):
    """Part of a minibatch that a microbatch is, by actions and by tokens; both 1 for the whole."""

    actions: Array | float
    tokens: Array | float


def _backward(
    networks: Networks,
    config: Config,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
    mesh: Mesh,
) -> _Backward:
    """Gradients of a minibatch, in microbatches if so configured."""
    size, whole = config.finetune.microbatch_size, batch.reward_b.shape[0]
    if size in (0, whole):
        return _backward_at_once(
            networks, config, base, state, batch, hyper, mesh, _Share(1.0, 1.0)
        )
    if whole % size:
        raise ValueError(f"microbatches of {size} do not divide a minibatch of {whole}")
    count = whole // size
    # Every microbatch is spread over all devices.
    microbatches = jax.tree.map(
        lambda leaf: leaf.reshape(size, count, *leaf.shape[1:]).swapaxes(0, 1), batch
    )
    num_tokens = jnp.sum(batch.action_mask_bj)
    trained = (state.critic, state.policy)

    def add(sums: Any, microbatch: Batch) -> tuple[Any, Metrics]:
        microbatch = jax.tree.map(over_devices, microbatch)
        share = _Share(1 / count, jnp.sum(microbatch.action_mask_bj) / num_tokens)
        part = _backward_at_once(networks, config, base, state, microbatch, hyper, mesh, share)
        critic_gradient = part.critic_gradient()
        gradients = (critic_gradient, part.policy_gradient(critic_gradient))
        return constrain(jax.tree.map(jnp.add, sums, gradients), mesh), part.metrics

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
    (critic, policy), metrics = jax.lax.scan(add, constrain(zeros, mesh), microbatches)
    return _Backward(
        {name: jnp.sum(values) for name, values in metrics.items()},
        lambda: critic,
        lambda after: policy,
    )


def _backward_at_once(
    networks: Networks,
    config: Config,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
    mesh: Mesh,
    share: _Share,
) -> _Backward:
    learning = config.learning
    next_value_b = next_state_value(networks, learning, base, state, batch, hyper)
    target_critic = state.target_critic if learning.critic_loss != "path" else None
    critic_bjd, critic_back = jax.vjp(
        lambda critic: action_hidden(networks, base, critic.trunk, batch), state.critic
    )
    policy_bjd, policy_back = jax.vjp(
        lambda policy: (
            None if networks.tie_policy else action_hidden(networks, base, policy, batch)
        ),
        state.policy,
    )
    reference_bjd = action_hidden(networks, base, {}, batch)
    target_bjd = None
    if target_critic is not None:
        target_bjd = action_hidden(networks, base, target_critic.trunk, batch)

    def loss(
        critic: Critic, critic_bjd: Array, policy: Role, policy_bjd: Array | None
    ) -> tuple[Array, Metrics]:
        scores = score_tokens(
            networks,
            learning,
            base,
            Roles(policy, critic, target_critic),
            Hidden(reference_bjd, policy_bjd, critic_bjd, target_bjd),
            batch.action_tokens_bj,
            hyper,
            chunk_size=config.finetune.loss_chunk_size,
        )
        metrics = _losses(learning, scores, batch, next_value_b, hyper, share)
        return metrics["critic_loss"] + metrics["policy_loss"], metrics

    # With respect to the parameters this is the way through the output layers alone.
    (_, metrics), cotangents = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(
        state.critic, critic_bjd, state.policy, policy_bjd
    )
    critic_head, critic_cotangent, policy_head, policy_cotangent = cotangents

    def critic_gradient() -> Critic:
        (through_trunk,) = critic_back(critic_cotangent)
        # Gradients do not inherit the sharding of what they belong to.
        gradient: Critic = constrain(jax.tree.map(jnp.add, through_trunk, critic_head), mesh)
        return gradient

    def policy_gradient(after: Any) -> Role:
        cotangent, _ = jax.lax.optimization_barrier((policy_cotangent, after))
        (through_trunk,) = policy_back(cotangent)
        gradient: Role = constrain(jax.tree.map(jnp.add, through_trunk, policy_head), mesh)
        return gradient

    return _Backward(metrics, critic_gradient, policy_gradient)


def _losses(
    learning: LearningConfig,
    scores: TokenScores,
    batch: Batch,
    next_value_b: Array,
    hyper: Hyperparameters,
    share: _Share,
) -> Metrics:
    """The losses and what describes them, each weighted with the microbatch's share."""
    mask_bj = batch.action_mask_bj
    policy_objective_bj = scores.policy_objective_bj
    if learning.critic_loss == "path":
        target_b = batch.reward_b + hyper.gamma * batch.continues_b * next_value_b
        critic_objective = path_loss(
            scores.state_value_bj,
            scores.log_ratio_bj,
            target_b,
            mask_bj,
            beta=hyper.beta,
            starts=learning.path_starts,  # type: ignore[arg-type]
        )
        critic_share = share.actions if learning.path_starts == "root" else share.tokens
        target_mean = jnp.mean(target_b) * share.actions
    else:
        target_bj = batch.targets_bj
        if target_bj is None:
            target_bj = targets_of(learning, scores, batch, next_value_b, hyper)
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


def targets_of(
    learning: LearningConfig,
    scores: TokenScores,
    batch: Batch,
    next_value_b: Array,
    hyper: Hyperparameters,
) -> Float[Array, "b j"]:
    """What the critic is regressed on at every token, in reward units.

    For path consistency, what the rest of the action implies for the value before each token.
    """
    if learning.critic_loss == "path":
        mask_bj = batch.action_mask_bj
        rest_bj = suffix_sums(scores.log_ratio_bj, mask_bj)
        target_b = batch.reward_b + hyper.gamma * batch.continues_b * next_value_b
        return jnp.where(mask_bj, target_b[:, None] - hyper.beta * rest_bj, 0.0)
    if learning.critic_loss == "one_step":
        return token_targets(
            scores.value_bj,
            next_value_b,
            batch.reward_b,
            batch.continues_b,
            batch.action_mask_bj,
            gamma=hyper.gamma,
            gamma_within=hyper.gamma_within,
        )
    return retrace_targets(
        scores.value_bj,
        scores.target_q_bj,
        _ratio(scores, batch),
        next_value_b,
        batch.reward_b,
        batch.continues_b,
        batch.action_mask_bj,
        gamma=hyper.gamma,
        gamma_within=hyper.gamma_within,
        lambda_within=hyper.lambda_within,
    )


def _ratio(scores: TokenScores, batch: Batch) -> Float[Array, "b j"]:
    """min(1, pi / mu) of the sampled tokens."""
    return jnp.exp(jnp.minimum(scores.log_prob_bj - batch.log_probs_bj, 0.0))


def next_state_value(
    networks: Networks,
    learning: LearningConfig,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
) -> Array:
    """V'_0 under the target critic [b]; 0 where the episode ended.

    Of pi, or for the path loss of the policy that Q implies.
    """

    def value(batch: Batch) -> Array:
        tokens, mask = batch.next_prompt_tokens_bp, batch.next_prompt_mask_bp

        def last_hidden(role: Role) -> Array:
            return networks.hidden(base, role, tokens, mask, last=1)[:, 0]

        distribution, target = hyper.distribution, state.target_critic
        if networks.q_parameterization == "policy":
            # Q is v + beta log(pi / rho), whose soft value under pi is v.
            return networks.head(target, last_hidden(target.trunk))
        raw_bv = networks.logits(base, {}, last_hidden({}))
        support_bv = distribution.support(raw_bv)
        reference_bv = distribution.logits(raw_bv, support_bv)
        soft_q, _ = read_critic(
            networks, base, target, last_hidden(target.trunk), None, reference_bv, support_bv, hyper
        )
        if learning.critic_loss == "path":
            return soft_q.value_bj
        trunk = networks.policy_trunk(state.policy, state.critic)
        policy_bv = distribution.logits(
            networks.logits(base, trunk, last_hidden(trunk)), support_bv
        )
        return soft_value(policy_bv, reference_bv, soft_q.q_bjv, beta=hyper.beta)

    value_b = jax.lax.cond(
        jnp.any(batch.continues_b > 0),
        value,
        lambda batch: jnp.zeros_like(batch.reward_b),
        batch,
    )
    return jax.lax.stop_gradient(jnp.where(batch.continues_b > 0, value_b, 0.0))


def divergences(kl_bj: Array, entropy_bj: Array, batch: Batch) -> Metrics:
    def per_action(values_bj: Array) -> Array:
        return jnp.mean(jnp.sum(jnp.where(batch.action_mask_bj, values_bj, 0.0), axis=1))

    return {"kl_to_reference": per_action(kl_bj), "entropy": per_action(entropy_bj)}


def _transformation(networks: Networks, config: Config) -> optax.GradientTransformation:
    return optimizer.build(config.optimizer, momentum_dtype=networks.trained_dtype)


def initial_key(config: Config) -> Array:
    """Of adapters, and folded with the step of stochastic rounding."""
    return jax.random.fold_in(jax.random.key(config.run.seed), 0x7057)


def over_devices(array: Array) -> Array:
    return sharding.shard(array, "b", *"-" * (array.ndim - 1))


def where(condition: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
