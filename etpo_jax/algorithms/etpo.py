"""ETPO: Algorithm 1 with its settings and its gradient step.

One program scores all four networks and takes the steps of critic, policy and target critic, so
that logits never leave the device. The networks are scored with the parameters as they stood before
the step: the policy's loss reads the critic before its own step, where Algorithm 1 writes them one
after the other. Losses and targets are in `etpo_losses`.

Memory: both forward passes are followed by the critic's backward pass and step, then the policy's,
so that one gradient is alive at a time. With microbatches and full fine-tuning the policy's forward
pass is repeated for that, a tenth of the step's work; the gradients of adapters are small and are
summed together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import etpo_losses, optimizer
from etpo_jax.algorithms.base import AbstractRun, Algorithm, Experience, Hyperparameters, StepMemory
from etpo_jax.algorithms.gradients import (
    Backward,
    Metrics,
    Share,
    all_finite,
    constrain,
    guarded_step,
    in_microbatches,
    initial_key,
    over_devices,
    where,
    without_layers,
)
from etpo_jax.algorithms.inspection import Inspection
from etpo_jax.algorithms.networks import Networks, TrainState, polyak
from etpo_jax.config import Config, RunConfig
from etpo_jax.learning import LearningConfig
from etpo_jax.registry import register_algorithm
from etpo_jax.roles import Role
from etpo_jax.settings import option, parse_choice, with_default
from models.transformer import Decoder

CRITIC_LOSSES: dict[str, dict[str, type]] = {
    "one_step": {"huber": float},
    "retrace": {"huber": float},
    "path": {},
    "path_root": {},
}
"""Regressions of the critic, with their settings."""
Q_PARAMETERIZATIONS = ("residual", "logits", "beta_logits", "dueling", "policy")
POLICY_LOSSES = ("doubly_robust", "exact", "eq7", "uniform", "tied")


@dataclasses.dataclass(frozen=True)
class EtpoConfig(LearningConfig):
    """Settings of ETPO; the defaults are the recommended method (docs/presets.md)."""

    gradient_steps_per_update: int = with_default(LearningConfig, "gradient_steps_per_update", 6)
    beta: float = with_default(LearningConfig, "beta", 0.06)
    critic_learning_rate: float = with_default(LearningConfig, "critic_learning_rate", 2e-3)
    replay_size: int = option(
        16,
        "Newest transitions kept for learning. If larger than one collection, gradient steps run "
        "while programs execute, except the last one.",
        lower=1,
    )
    critic_loss: str = option(
        "retrace",
        "Regression of the critic: the paper's one-step targets (one_step), Retrace along the "
        "action (retrace), or path consistency of the action from every token (path) or from its "
        "first (path_root), see docs/algorithm.md. The error is squared; one_step:huber=10 and "
        "retrace:huber=10 take the Huber loss, which is linear beyond an error of 10.",
    )
    gamma_within: float = option(
        1.0,
        "Discount between the tokens of an action (Eq. 6: 1; the DISC. ablation: 0.99).",
        lower=0.0,
        upper=1.0,
        traced=True,
    )
    lambda_within: float = option(
        1.0,
        "Weight of later tokens along the action: Retrace's lambda (etpo; 0 is the paper's "
        "target) or that of the generalised advantage (poad).",
        lower=0.0,
        upper=1.0,
        traced=True,
    )
    polyak_lambda: float = option(
        0.9,
        "Weight of the old target critic in its moving average (the paper's lambda).",
        lower=0.0,
        upper=1.0,
        traced=True,
    )
    q_parameterization: str = option(
        "residual",
        "How Q is read from the critic's logits, see docs/algorithm.md; logits is the authors' "
        "code.",
        choices=Q_PARAMETERIZATIONS,
    )
    policy_loss: str = option(
        "doubly_robust",
        "Loss of the policy, see docs/algorithm.md: exact is Eq. 8 and 9, eq7 is Eq. 7, uniform "
        "the authors' code.",
        choices=POLICY_LOSSES,
    )
    trust_region: float = option(
        0.3,
        "An action whose log probability has moved more than this (in nats) since it was sampled "
        "no longer changes the policy (a mask on the sequence-level ratio); 0 is no limit.",
        lower=0.0,
        traced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.huber_delta is not None and self.huber_delta <= 0:
            raise ValueError(f"--critic_loss={self.critic_loss}: huber must be > 0")

    def check(self, config: Config) -> None:
        super().check(config)
        if self.is_path and self.gamma_within != 1.0:
            raise ValueError(
                f"--gamma_within={self.gamma_within:g}: --critic_loss={self.critic_loss} needs 1, "
                "a path does not discount inside an action"
            )
        if self.policy_loss == "doubly_robust" and self.is_path:
            raise ValueError(
                "--policy_loss=doubly_robust: path consistency has no targets of tokens, it needs "
                "--critic_loss=one_step or retrace"
            )
        if self.has_policy_loss:
            if self.q_parameterization == "policy":
                raise ValueError(
                    f"--policy_loss={self.policy_loss}: must be tied with "
                    "--q_parameterization=policy, where Q implies the policy"
                )
        elif self.trust_region > 0:
            raise ValueError(
                f"--trust_region={self.trust_region:g}: must be 0 with --policy_loss=tied, where "
                "the policy has no loss of its own"
            )
        elif self.q_parameterization in ("logits", "beta_logits"):
            raise ValueError(
                f"--q_parameterization={self.q_parameterization}: --policy_loss=tied needs "
                "residual or dueling, whose Q implies the softmax of the critic's logits, or policy"
            )
        threshold = config.sampling.support_threshold
        if self.policy_loss == "uniform" and threshold > 0:
            raise ValueError(
                f"--support_threshold={threshold:g}: must be 0 with --policy_loss=uniform, whose "
                "mean over the vocabulary includes masked tokens"
            )

    @property
    def regression(self) -> str:
        """Name of the critic's regression, one of `CRITIC_LOSSES`."""
        return parse_choice("critic_loss", self.critic_loss, CRITIC_LOSSES)[0]

    @property
    def huber_delta(self) -> float | None:
        """Error beyond which the critic's loss is linear; None is the squared loss."""
        return parse_choice("critic_loss", self.critic_loss, CRITIC_LOSSES)[1].get("huber")

    @property
    def is_path(self) -> bool:
        """True for the regressions by path consistency."""
        return self.regression.startswith("path")

    @property
    def has_policy_loss(self) -> bool:
        """True if the policy has a loss of its own."""
        return self.policy_loss != "tied"

    @property
    def has_policy_network(self) -> bool:
        """False if the policy is read from the critic's network."""
        return self.has_policy_loss or self.q_parameterization == "policy"

    def is_overlapping(self, run: RunConfig) -> bool:
        """True if gradient steps from the replay are taken while programs execute."""
        return self.replay_size > run.collection_size


@register_algorithm("etpo")
class Etpo(Algorithm):
    """Algorithm 1: a soft Q-network with credit per token, and the policy that follows it."""

    Settings = EtpoConfig
    learns_from_exploration = True
    state: TrainState

    def __init__(self, model: Decoder, base: Any, config: Config, mesh: Mesh):
        super().__init__(model, base, config, mesh)
        networks, learning = self.networks, config.learning
        self.hyper = hyperparameters(config)
        self._gradient_step = make_gradient_step(networks, config, mesh)
        self._inspect = etpo_losses.make_inspect(networks, config)
        self._num_updates, self._size = learning.gradient_steps_per_update, learning.minibatch_size
        self._is_overlapping = learning.is_overlapping(config.run)

    def policy_trunk(self) -> Role:
        return self.networks.policy_trunk(self.state.policy, self.state.critic)

    def start(self, mean_reward: float) -> None:
        """Sets b0 of both critics: an untrained token is then worth the average reward."""
        self.state = dataclasses.replace(
            self.state,
            critic=self.state.critic.with_offset(mean_reward),
            target_critic=self.state.target_critic.with_offset(mean_reward),
        )

    def while_programs_execute(self, experience: Experience) -> list[Metrics]:
        return self._learn_from_replay(experience) if self._is_overlapping else []

    def after_collection(self, experience: Experience) -> list[Metrics]:
        learned = [] if self._is_overlapping else self._learn_from_replay(experience)
        return [*learned, self.learn(experience.fresh(self._size, self._num_updates))]

    def _learn_from_replay(self, experience: Experience) -> list[Metrics]:
        """Takes all gradient steps but the last, which is left for the new transitions."""
        if not len(experience.replay):
            return []
        return [
            self.learn(experience.sample(self._size, index))
            for index in range(self._num_updates - 1)
        ]

    def learn(self, batch: Batch) -> Metrics:
        """Takes one gradient step; its metrics may still be on their way from the device."""
        self.state, metrics = self._gradient_step(self.state, self.base, batch, self.hyper)
        return metrics

    def inspect(self, batch: Batch) -> Inspection:
        return self._inspect(self.state, self.base, batch, self.hyper)

    @classmethod
    def replay_size(cls, config: Config) -> int:
        return max(config.learning.replay_size, config.run.collection_size)

    @classmethod
    def make_networks(cls, model: Decoder, config: Config) -> Networks:
        learning: EtpoConfig = config.learning
        return dataclasses.replace(
            super().make_networks(model, config),
            q_parameterization=learning.q_parameterization,
            tie_policy=not learning.has_policy_network,
        )

    @classmethod
    def initial_state(cls, networks: Networks, base: Any, config: Config) -> TrainState:
        """Algorithm 1's initialisation: every network starts as rho."""
        policy_key, critic_key = jax.random.split(initial_key(config.run.seed))
        policy = networks.initial_policy(base, policy_key)
        critic = networks.initial_critic(base, critic_key)
        transformation = optimizer.build(config)
        return TrainState(
            policy=policy,
            critic=critic,
            target_critic=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), critic),
            policy_optimizer=optimizer.initial(transformation, policy),
            critic_optimizer=optimizer.initial(transformation, critic),
            step=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def policy_keys(cls, config: Config) -> tuple[str, ...]:
        learning: EtpoConfig = config.learning
        return ("policy",) if learning.has_policy_network else ("critic", "trunk")

    @classmethod
    def step_memory(cls, config: Config) -> StepMemory:
        learning, run = config.learning, config.run
        return StepMemory(
            scored_rows=0,
            gradients_at_once=False,
            # The device learns while programs execute, and samples with the same weights later.
            is_beside_sampling=learning.is_overlapping(run)
            and learning.gradient_steps_per_update > 1
            and run.steps_per_update > 1,
        )

    @classmethod
    def lower_step(cls, run: AbstractRun) -> Any:
        step: Any = make_gradient_step(run.networks, run.config, run.mesh)
        batch = run.make_batch(run.config.learning.minibatch_size)
        hyper = jax.eval_shape(lambda: hyperparameters(run.config))
        return step.lower(run.state, run.base, *run.whole((batch, hyper)))


def hyperparameters(config: Config) -> Hyperparameters:
    """The numbers that compiled programs take; without a trust region its radius is infinite."""
    hyper = Hyperparameters.of(config)
    if config.learning.trust_region > 0:
        return hyper
    return hyper.replace(trust_region=jnp.float32(np.inf))


GradientStep = Callable[[TrainState, Any, Batch, Hyperparameters], tuple[TrainState, Metrics]]


def make_gradient_step(networks: Networks, config: Config, mesh: Mesh) -> GradientStep:
    """Makes the jitted step (state, base, batch, hyperparameters) -> (state, metrics).

    The state is donated. Metrics are float32 scalars; `is_finite` 0 means that a network, or both,
    kept the values from before. `kl_to_reference` and `entropy` are nats per action, summed over
    its tokens; `clipped_share` is the share of the actions outside the trust region.
    """
    transformation = optimizer.build(config)

    def gradient_step(
        state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters
    ) -> tuple[TrainState, Metrics]:
        batch = jax.tree.map(over_devices, batch)

        def backward(part: Batch, share: Share) -> Backward:
            return etpo_losses.backward(networks, config, base, state, part, hyper, mesh, share)

        def policy_again(part: Batch, cotangent_bjd: Array) -> Any:
            return etpo_losses.policy_gradient_through_trunk(
                networks, base, state.policy, part, cotangent_bjd
            )

        found = in_microbatches(
            backward,
            batch,
            batch.action_mask_bj,
            (state.critic, state.policy),
            config.finetune.microbatch_size,
            mesh,
            second=policy_again if config.finetune.adapters is None else None,
            direct=without_layers(state.policy),
        )
        key = jax.random.fold_in(initial_key(config.run.seed), state.step)
        state, metrics = take_steps(transformation, state, found, hyper, key)
        return constrain(state, mesh), metrics

    return jax.jit(gradient_step, donate_argnums=0)


def take_steps(
    transformation: optax.GradientTransformationExtraArgs,
    state: TrainState,
    found: Backward,
    hyper: Hyperparameters,
    key: Key[Array, ""],
) -> tuple[TrainState, Metrics]:
    """The steps of critic and policy, and of the target critic behind the critic's."""
    metrics, (critic_gradient, policy_gradient) = found.metrics, found.gradients
    keys = jax.random.split(key)
    critic = guarded_step(
        transformation,
        critic_gradient(None),
        state.critic,
        state.critic_optimizer,
        learning_rate=hyper.critic_learning_rate,
        key=keys[0],
        is_finite=all_finite(metrics),
    )
    moved = polyak(state.target_critic, critic.parameters, hyper.polyak_lambda)
    policy = guarded_step(
        transformation,
        policy_gradient(critic),
        state.policy,
        state.policy_optimizer,
        learning_rate=hyper.policy_learning_rate,
        key=keys[1],
        is_finite=critic.is_taken,
    )
    metrics["critic_grad_norm"], metrics["policy_grad_norm"] = critic.norm, policy.norm
    metrics["is_finite"] = policy.is_taken.astype(jnp.float32)
    state = TrainState(
        policy=policy.parameters,
        critic=critic.parameters,
        target_critic=where(critic.is_taken, moved, state.target_critic),
        policy_optimizer=policy.optimizer_state,
        critic_optimizer=critic.optimizer_state,
        step=state.step + policy.is_taken.astype(jnp.int32),
    )
    return state, metrics
