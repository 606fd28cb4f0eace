"""One gradient step of Algorithm 1 as one program: score, targets, critic, policy, target critic.

All four networks are scored in one pass over the batch, with the parameters as they stood before
the step, so that logits never leave the device. The policy's loss therefore reads the critic before
its own step, where Algorithm 1 writes them one after the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from etpo_jax import optimizer
from etpo_jax.batch import Batch
from etpo_jax.config import Config, LearningConfig
from etpo_jax.divergence import categorical_kl, entropy
from etpo_jax.losses import critic_loss, path_loss, policy_loss, uniform_policy_loss
from etpo_jax.networks import Distribution, Networks, SoftQ, read_soft_q
from etpo_jax.soft_q import retrace_targets, soft_value, token_targets
from etpo_jax.train_state import Critic, Role, TrainState, polyak
from models import sharding


class Hyperparameters(NamedTuple):
    """Settings that are traced, so that trying another value does not compile again."""

    beta: Float[Array, ""]
    gamma: Float[Array, ""]
    gamma_within: Float[Array, ""]
    lambda_within: Float[Array, ""]
    polyak_lambda: Float[Array, ""]
    temperature: Float[Array, ""]
    support_threshold: Float[Array, ""]
    policy_learning_rate: Float[Array, ""]
    critic_learning_rate: Float[Array, ""]

    @classmethod
    def of(cls, config: Config) -> "Hyperparameters":
        learning = config.learning
        values = {
            "beta": learning.beta,
            "gamma": learning.gamma,
            "gamma_within": learning.gamma_within,
            "lambda_within": learning.lambda_within,
            "polyak_lambda": learning.polyak_lambda,
            "temperature": config.loss_temperature,
            "support_threshold": config.sampling.support_threshold,
            "policy_learning_rate": config.optimizer.policy_learning_rate,
            "critic_learning_rate": config.optimizer.critic_learning_rate,
        }
        return cls(**{name: jnp.float32(value) for name, value in values.items()})

    @property
    def distribution(self) -> Distribution:
        """What pi and rho mean in the losses."""
        return Distribution(self.temperature, self.support_threshold)


Metrics = dict[str, Float[Array, ""]]
UpdateStep = Callable[[TrainState, Any, Batch, Hyperparameters], tuple[TrainState, Metrics]]


class NonFiniteError(Exception):
    """A loss or a gradient is NaN or infinite; the state before that step was kept."""


def initial_state(networks: Networks, base: Any, config: Config) -> TrainState:
    """Algorithm 1's initialisation: every network starts as rho."""
    policy = networks.initial_policy(base)
    critic = networks.initial_critic(base)
    transformation = optimizer.build(config.optimizer)
    return TrainState(
        policy=policy,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        policy_optimizer=transformation.init(policy),
        critic_optimizer=transformation.init(critic),
        step=jnp.zeros((), jnp.int32),
    )


def make_update_step(networks: Networks, config: Config, mesh: Mesh) -> UpdateStep:
    """The jitted step (state, base, batch, hyperparameters) -> (state, metrics).

    The state is donated. Metrics are float32 scalars; `is_finite` 0 means that the step was not
    taken. `kl_to_reference` and `entropy` are nats per action, summed over its tokens.
    """
    transformation = optimizer.build(config.optimizer)
    learning = config.learning

    def update_step(
        state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(_over_devices, batch)
        context = _score_fixed(networks, learning, base, state, batch, hyper)

        def loss(trained: tuple[Role, Critic]) -> tuple[Float[Array, ""], Metrics]:
            return _losses(networks, learning, base, trained, batch, context, hyper)

        trained = (state.policy, state.critic)
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        # Gradients do not inherit the sharding of what they belong to.
        gradients = constrain(gradients, mesh)
        policy, policy_optimizer = _step(
            transformation,
            gradients[0],
            state.policy_optimizer,
            state.policy,
            hyper.policy_learning_rate,
        )
        critic, critic_optimizer = _step(
            transformation,
            gradients[1],
            state.critic_optimizer,
            state.critic,
            hyper.critic_learning_rate,
        )
        proposed = TrainState(
            policy=policy,
            critic=critic,
            target_critic=polyak(state.target_critic, critic, hyper.polyak_lambda),
            policy_optimizer=policy_optimizer,
            critic_optimizer=critic_optimizer,
            step=state.step + 1,
        )
        metrics["policy_grad_norm"] = optax.tree.norm(gradients[0])
        metrics["critic_grad_norm"] = optax.tree.norm(gradients[1])
        is_finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), proposed, state)
        metrics["is_finite"] = is_finite.astype(jnp.float32)
        return constrain(state, mesh), metrics

    return jax.jit(update_step, donate_argnums=0)


def make_measure(
    networks: Networks,
) -> Callable[[Any, Role, Batch, Hyperparameters], Metrics]:
    """The jitted (base, policy trunk, batch, hyperparameters) -> KL and entropy."""

    def measure(base: Any, trunk: Role, batch: Batch, hyper: Hyperparameters) -> Metrics:
        reference_bjv = networks.logits(base, {}, _action_hidden(networks, base, {}, batch))
        support_bjv = hyper.distribution.support(reference_bjv)
        policy_bjv = networks.logits(base, trunk, _action_hidden(networks, base, trunk, batch))
        return _divergences(
            hyper.distribution.logits(policy_bjv, support_bjv),
            hyper.distribution.logits(reference_bjv, support_bjv),
            batch,
        )

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
        f"gradient step {step} gave a non-finite {', '.join(broken)}; the state before it was kept."
        " Try a lower learning rate, a larger --beta or --dtype=float32"
    )


class _Fixed(NamedTuple):
    """What is scored without gradient."""

    reference_logits_bjv: Array
    support_bjv: Array
    target: SoftQ | None  # of the target critic; the path loss does not need it
    next_value_b: Array


def _score_fixed(
    networks: Networks,
    learning: LearningConfig,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
) -> _Fixed:
    distribution = hyper.distribution
    raw_bjv = networks.logits(base, {}, _action_hidden(networks, base, {}, batch))
    support_bjv = distribution.support(raw_bjv)
    # A sampled token was in the support; at its edge, rounding in another program may say otherwise
    # and would make its probability nearly 0.
    support_bjv |= jax.nn.one_hot(batch.action_tokens_bj, raw_bjv.shape[-1], dtype=jnp.bool_)
    reference_logits_bjv = distribution.logits(raw_bjv, support_bjv)
    target = None
    if learning.critic_loss != "path":
        target, _ = _read_critic(
            networks,
            base,
            state.target_critic,
            _action_hidden(networks, base, state.target_critic.trunk, batch),
            reference_logits_bjv,
            support_bjv,
            hyper,
        )

    def next_value(batch: Batch) -> Array:
        return _next_state_value(networks, learning, base, state, batch, hyper)

    next_value_b = jax.lax.cond(
        jnp.any(batch.continues_b > 0),
        next_value,
        lambda batch: jnp.zeros_like(batch.reward_b),
        batch,
    )
    return jax.lax.stop_gradient(_Fixed(reference_logits_bjv, support_bjv, target, next_value_b))


def _next_state_value(
    networks: Networks,
    learning: LearningConfig,
    base: Any,
    state: TrainState,
    batch: Batch,
    hyper: Hyperparameters,
) -> Array:
    """V'_0 under the target critic: of pi, or for the path loss of the policy that Q implies."""
    tokens, mask = batch.next_prompt_tokens_bp, batch.next_prompt_mask_bp

    def last_hidden(role: Role) -> Array:
        return networks.hidden(base, role, tokens, mask)[:, -1]

    distribution = hyper.distribution
    raw_bv = networks.logits(base, {}, last_hidden({}))
    support_bv = distribution.support(raw_bv)
    reference_logits_bv = distribution.logits(raw_bv, support_bv)
    soft_q, _ = _read_critic(
        networks,
        base,
        state.target_critic,
        last_hidden(state.target_critic.trunk),
        reference_logits_bv,
        support_bv,
        hyper,
    )
    if learning.critic_loss == "path":
        return soft_q.value_bj
    trunk = networks.policy_trunk(state.policy, state.critic)
    policy_bv = distribution.logits(networks.logits(base, trunk, last_hidden(trunk)), support_bv)
    return soft_value(policy_bv, reference_logits_bv, soft_q.q_bjv, beta=hyper.beta)


def _losses(
    networks: Networks,
    learning: LearningConfig,
    base: Any,
    trained: tuple[Role, Critic],
    batch: Batch,
    fixed: _Fixed,
    hyper: Hyperparameters,
) -> tuple[Float[Array, ""], Metrics]:
    policy, critic = trained
    mask_bj = batch.action_mask_bj
    soft_q, critic_logits_bjv = _read_critic(
        networks,
        base,
        critic,
        _action_hidden(networks, base, critic.trunk, batch),
        fixed.reference_logits_bjv,
        fixed.support_bjv,
        hyper,
    )
    if networks.tie_policy:
        policy_logits_bjv = critic_logits_bjv
    else:
        hidden_bjd = _action_hidden(networks, base, policy, batch)
        policy_logits_bjv = hyper.distribution.logits(
            networks.logits(base, policy, hidden_bjd), fixed.support_bjv
        )
    critic_objective, target_mean = _critic_objective(
        learning, soft_q, policy_logits_bjv, batch, fixed, hyper
    )
    if networks.tie_policy:
        policy_objective = jnp.zeros(())  # nothing to distil: pi is softmax of the critic's logits
    elif learning.policy_loss == "uniform":
        policy_objective = uniform_policy_loss(
            policy_logits_bjv, soft_q.q_bjv, mask_bj, beta=hyper.beta
        )
    else:
        policy_objective = policy_loss(
            policy_logits_bjv,
            fixed.reference_logits_bjv,
            soft_q.q_bjv,
            mask_bj,
            beta=hyper.beta,
            target=learning.policy_target,  # type: ignore[arg-type]
        )
    metrics = {
        "critic_loss": critic_objective,
        "policy_loss": policy_objective,
        "target_mean": target_mean,
        **_divergences(policy_logits_bjv, fixed.reference_logits_bjv, batch),
    }
    return critic_objective + policy_objective, metrics


def _critic_objective(
    learning: LearningConfig,
    soft_q: SoftQ,
    policy_logits_bjv: Array,
    batch: Batch,
    fixed: _Fixed,
    hyper: Hyperparameters,
) -> tuple[Array, Array]:
    """The critic's loss, and the mean of what it regresses on."""
    mask_bj, tokens_bj = batch.action_mask_bj, batch.action_tokens_bj
    if fixed.target is None:
        bootstrap_b = jnp.where(batch.continues_b > 0, fixed.next_value_b, 0.0)
        target_b = batch.reward_b + hyper.gamma * batch.continues_b * bootstrap_b
        loss = path_loss(
            soft_q.value_bj,
            _taken(soft_q.log_ratio_bjv, tokens_bj),
            target_b,
            mask_bj,
            beta=hyper.beta,
            starts=learning.path_starts,  # type: ignore[arg-type]
        )
        return loss, jnp.mean(target_b)
    value_bj = soft_value(
        policy_logits_bjv, fixed.reference_logits_bjv, fixed.target.q_bjv, beta=hyper.beta
    )
    if learning.critic_loss == "one_step":
        target_bj = token_targets(
            value_bj,
            fixed.next_value_b,
            batch.reward_b,
            batch.continues_b,
            mask_bj,
            gamma=hyper.gamma,
            gamma_within=hyper.gamma_within,
        )
    else:
        log_probs_bj = _taken(jax.nn.log_softmax(policy_logits_bjv), tokens_bj)
        target_bj = retrace_targets(
            value_bj,
            _taken(fixed.target.q_bjv, tokens_bj),
            jnp.exp(jnp.minimum(log_probs_bj - batch.log_probs_bj, 0.0)),
            fixed.next_value_b,
            batch.reward_b,
            batch.continues_b,
            mask_bj,
            gamma=hyper.gamma,
            gamma_within=hyper.gamma_within,
            lambda_within=hyper.lambda_within,
        )
    loss = critic_loss(
        _taken(soft_q.q_bjv, tokens_bj), target_bj, mask_bj, huber_delta=learning.huber_delta
    )
    return loss, jnp.sum(target_bj) / jnp.maximum(jnp.sum(mask_bj), 1)


def _read_critic(
    networks: Networks,
    base: Any,
    critic: Critic,
    hidden_bjd: Array,
    reference_logits_bjv: Array,
    support_bjv: Array,
    hyper: Hyperparameters,
) -> tuple[SoftQ, Array]:
    """The critic's Q at hidden states, and its processed logits."""
    logits_bjv = hyper.distribution.logits(
        networks.logits(base, critic.trunk, hidden_bjd), support_bjv
    )
    soft_q = read_soft_q(
        networks.q_parameterization,
        logits_bjv,
        reference_logits_bjv,
        networks.head(critic, hidden_bjd),
        beta=hyper.beta,
    )
    return soft_q, logits_bjv


def _action_hidden(networks: Networks, base: Any, role: Role, batch: Batch) -> Array:
    """Hidden states [b, j, d] that score the action tokens."""
    tokens_bs = jnp.concatenate([batch.prompt_tokens_bp, batch.action_tokens_bj], axis=1)
    mask_bs = jnp.concatenate([batch.prompt_mask_bp, batch.action_mask_bj], axis=1)
    first = batch.prompt_tokens_bp.shape[1] - 1
    return networks.hidden(base, role, tokens_bs, mask_bs)[:, first:-1]


def _over_devices(array: Array) -> Array:
    return sharding.shard(array, "b", *"-" * (array.ndim - 1))


def _taken(values_bjv: Array, tokens_bj: Array) -> Array:
    return jnp.take_along_axis(values_bjv, tokens_bj[..., None], axis=-1)[..., 0]


def _divergences(policy_logits_bjv: Array, reference_logits_bjv: Array, batch: Batch) -> Metrics:
    mask_bj = batch.action_mask_bj

    def per_action(values_bj: Array) -> Array:
        return jnp.mean(jnp.sum(jnp.where(mask_bj, values_bj, 0.0), axis=1))

    return {
        "kl_to_reference": per_action(categorical_kl(policy_logits_bjv, reference_logits_bjv)),
        "entropy": per_action(entropy(policy_logits_bjv)),
    }


def _step(
    transformation: optax.GradientTransformation,
    gradients: Any,
    optimizer_state: Any,
    parameters: Any,
    learning_rate: Array,
) -> tuple[Any, Any]:
    direction, optimizer_state = transformation.update(gradients, optimizer_state, parameters)
    direction = jax.tree.map(lambda leaf: -learning_rate * leaf, direction)
    return optax.apply_updates(parameters, direction), optimizer_state
