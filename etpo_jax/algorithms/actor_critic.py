"""Clipped policy gradients with a value network: what PPO-KL and POAD have in common.

Both learn from each collection alone: the worth of its actions is computed once, with the
parameters that sampled them (`label`), and several steps follow the clipped surrogate (`step`). The
value network is a trunk of its own, started from rho as ETPO's critic is, with a scalar head in
place of the vocabulary's.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from etpo_jax.acting.transitions import Batch, Blocks
from etpo_jax.algorithms import optimizer
from etpo_jax.algorithms.base import AbstractRun, Algorithm, Experience, Hyperparameters
from etpo_jax.algorithms.clipped_losses import (
    clipped_share,
    clipped_surrogate,
    standardize,
    value_loss,
)
from etpo_jax.algorithms.gradients import (
    Backward,
    Metrics,
    Share,
    all_finite,
    constrain,
    guarded_step,
    in_microbatches,
    initial_key,
    next_state_values,
    over_devices,
)
from etpo_jax.algorithms.networks import Critic, Networks
from etpo_jax.algorithms.token_scores import divergences, in_chunks, of_token, read_policy
from etpo_jax.config import Config
from etpo_jax.divergence import categorical_kl, entropy, masked_mean
from etpo_jax.learning import LearningConfig
from etpo_jax.roles import Role
from etpo_jax.settings import option
from models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class ClippedConfig(LearningConfig):
    """Settings that the clipped policy gradients have in common."""

    clip_ratio: float = option(
        0.2,
        "Distance from 1 at which the ratio to the sampling policy is clipped.",
        lower=0.0,
        exclusive_lower=True,
        traced=True,
    )


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
      advantage: standardised; [b] for whole actions, [b, j] for tokens.
      target: what the value head regresses on, of the same shape, in reward units.
    """

    reference_bjd: Float[Array, "b j d"]
    advantage: Float[Array, "*b"]
    target: Float[Array, "*b"]


class Scores(NamedTuple):
    """Log pi (differentiable), log rho, KL and entropy of each action token, in nats."""

    log_prob_bj: Float[Array, "b j"]
    reference_log_prob_bj: Float[Array, "b j"]
    kl_bj: Float[Array, "b j"]
    entropy_bj: Float[Array, "b j"]


class ActorCritic(Algorithm):
    """Base of PPO-KL and POAD: several clipped steps on each collection, which is never used again.

    Class attributes:
      is_per_token: whether advantages and ratios are those of tokens [b, j] or of actions [b].
    """

    Settings = ClippedConfig
    is_per_token: ClassVar[bool]
    state: ActorCriticState

    def __init__(self, model: Decoder, base: Any, config: Config, mesh: Mesh):
        super().__init__(model, base, config, mesh)
        self._label = self.make_label(self.networks, config)
        self._step = self.make_step(self.networks, config, mesh)

    # The parts in which PPO-KL and POAD differ.

    @classmethod
    def has_critic(cls, config: Config) -> bool:
        """True if the algorithm has a value network."""
        del config
        return True

    @classmethod
    @abc.abstractmethod
    def values(cls, networks: Networks, base: Any, critic: Critic, batch: Batch) -> Array:
        """The value network's V before each action [b] or before each token [b, j]."""

    @classmethod
    @abc.abstractmethod
    def worth(
        cls,
        batch: Batch,
        reference_log_prob_bj: Float[Array, "b j"],
        value: Float[Array, "*b"] | None,
        next_value_b: Float[Array, "b"],
        num_new: Int[Array, ""],
        hyper: Hyperparameters,
    ) -> tuple[Array, Array, Array]:
        """Advantage, regression target and mask of a collection, per action or per token.

        Args:
          batch: the collection, row i a copy of row i % num_new.
          reference_log_prob_bj: log rho of the sampled tokens.
          value: result of `values`, None without a critic.
          next_value_b: values of the next states, 0 where the episode ended.
          num_new: rows that are no copies.
          hyper: traced numbers of the settings.
        """

    @classmethod
    @abc.abstractmethod
    def log_ratio(cls, scores: Scores, batch: Batch) -> tuple[Array, Array]:
        """log pi - log mu per action or per token, and the mask of what is real."""

    # The interface of an algorithm.

    def start(self, mean_reward: float) -> None:
        """Sets b0 of the value network: an unknown state is then worth the average reward."""
        if self.state.critic is not None:
            critic = self.state.critic.with_offset(mean_reward)
            self.state = dataclasses.replace(self.state, critic=critic)

    def after_collection(self, experience: Experience) -> list[Metrics]:
        return self.learn_collection(
            experience.collection(), experience.rng(0), len(experience.new)
        )

    def learn_collection(
        self, batch: Batch, rng: np.random.Generator, num_new: int | None = None
    ) -> list[Metrics]:
        """Takes all gradient steps on one collection.

        Args:
          batch: the collection.
          rng: draws the minibatches.
          num_new: rows that are no copies, see `worth`; None if none is a copy.
        """
        size, learning = len(batch.reward_b), self.config.learning
        count = jnp.int32(size if num_new is None else num_new)
        labels = self._label(self.state, self.base, batch, count, self.hyper)
        learned = []
        for rows in minibatches(
            size, learning.minibatch_size, learning.gradient_steps_per_update, rng
        ):
            self.state, metrics = self._step(self.state, self.base, batch, labels, rows, self.hyper)
            learned.append(metrics)
        return learned

    @classmethod
    def make_networks(cls, model: Decoder, config: Config) -> Networks:
        # A dueling critic has the scalar head that values are read from.
        networks = super().make_networks(model, config)
        return dataclasses.replace(networks, q_parameterization="dueling")

    @classmethod
    def initial_state(cls, networks: Networks, base: Any, config: Config) -> ActorCriticState:
        """Policy and value network start as rho, the value head as 0."""
        policy_key, critic_key = jax.random.split(initial_key(config.run.seed))
        transformation = optimizer.build(config)
        policy = networks.initial_policy(base, policy_key)
        critic = networks.initial_critic(base, critic_key) if cls.has_critic(config) else None
        return ActorCriticState(
            policy=policy,
            critic=critic,
            policy_optimizer=optimizer.initial(transformation, policy),
            critic_optimizer=None if critic is None else optimizer.initial(transformation, critic),
            step=jnp.zeros((), jnp.int32),
        )

    @classmethod
    def lower_step(cls, run: AbstractRun) -> Any:
        config, known = run.config, (run.state, run.base)
        batch = run.whole(run.make_batch(config.run.collection_size))
        hyper = run.whole(jax.eval_shape(lambda: Hyperparameters.of(config)))
        label, count = cls.make_label(run.networks, config), jax.ShapeDtypeStruct((), jnp.int32)
        labels = run.whole(jax.eval_shape(label, *known, batch, count, hyper))
        rows_m = run.whole(jax.ShapeDtypeStruct((config.learning.minibatch_size,), jnp.int32))
        step: Any = cls.make_step(run.networks, config, run.mesh)
        return step.lower(*known, batch, labels, rows_m, hyper)

    # The two compiled programs.

    @classmethod
    def make_label(cls, networks: Networks, config: Config) -> Callable[..., Labels]:
        """Makes the jitted (state, base, collection, num_new, hyperparameters) -> labels."""

        def label(
            state: ActorCriticState,
            base: Any,
            batch: Batch,
            num_new: Int[Array, ""],
            hyper: Hyperparameters,
        ) -> Labels:
            batch = jax.tree.map(over_devices, batch)
            reference_bjd = networks.action_hidden(base, {}, batch)
            scores = score_policy(networks, config, base, state.policy, reference_bjd, batch, hyper)
            critic = state.critic
            value, next_value_b = None, jnp.zeros_like(batch.reward_b)
            if critic is not None:
                value = cls.values(networks, base, critic, batch)
                next_value_b = next_state_values(
                    batch, lambda *prompts: state_values(networks, base, critic, *prompts)
                )
            advantage, target, mask = cls.worth(
                batch, scores.reference_log_prob_bj, value, next_value_b, num_new, hyper
            )
            labels = Labels(reference_bjd, standardize(advantage, mask), target)
            return jax.lax.stop_gradient(labels)

        return jax.jit(label)

    @classmethod
    def make_step(cls, networks: Networks, config: Config, mesh: Mesh) -> Callable[..., Any]:
        """Makes the jitted gradient step on one minibatch of a collection.

        It maps (state, base, collection, labels, rows, hyperparameters) to (state, metrics), where
        `rows` are the transitions of the minibatch. The state is donated. Metrics are named as for
        ETPO: `critic_loss` is the loss of the value head, `clipped_share` the share of the
        minibatch whose ratio was outside the range in which it is not clipped.
        """
        transformation = optimizer.build(config)

        def step(
            state: ActorCriticState,
            base: Any,
            batch: Batch,
            labels: Labels,
            rows_m: Int[Array, "m"],
            hyper: Hyperparameters,
        ) -> tuple[ActorCriticState, Metrics]:
            # The microbatches are of other rows than those that blocks were counted for.
            batch = dataclasses.replace(batch, microbatch_blocks=Blocks())
            data = jax.tree.map(lambda leaf: over_devices(leaf[rows_m]), (batch, labels))
            trained = (state.policy, state.critic)

            def backward(part: tuple[Batch, Labels], share: Share) -> Backward:
                return cls._backward(networks, config, base, trained, part, hyper, mesh, share)

            found = in_microbatches(
                backward,
                data,
                data[0].action_mask_bj,
                trained,
                config.finetune.microbatch_size,
                mesh,
            )
            key = jax.random.fold_in(initial_key(config.run.seed), state.step)
            state, metrics = take_steps(transformation, state, found, hyper, key)
            return constrain(state, mesh), metrics

        return jax.jit(step, donate_argnums=0)

    @classmethod
    def _backward(
        cls,
        networks: Networks,
        config: Config,
        base: Any,
        trained: tuple[Role, Critic | None],
        data: tuple[Batch, Labels],
        hyper: Hyperparameters,
        mesh: Mesh,
        share: Share,
    ) -> Backward:
        batch, labels = data

        def loss(trained: tuple[Role, Critic | None]) -> tuple[Array, Metrics]:
            policy, critic = trained
            scores = score_policy(
                networks, config, base, policy, labels.reference_bjd, batch, hyper
            )
            log_ratio, mask = cls.log_ratio(scores, batch)
            value = labels.target
            if critic is not None:
                value = cls.values(networks, base, critic, batch)
            clip = {"clip_ratio": hyper.clip_ratio}
            entries = {
                "policy_loss": clipped_surrogate(log_ratio, labels.advantage, mask, **clip),
                "critic_loss": value_loss(value, labels.target, mask),
                "target_mean": masked_mean(labels.target, mask),
                "clipped_share": clipped_share(log_ratio, mask, **clip),
            }
            of_entries = share.tokens if cls.is_per_token else share.actions
            per_action = divergences(scores.kl_bj, scores.entropy_bj, batch)
            metrics = {name: entry * of_entries for name, entry in entries.items()}
            metrics |= {name: entry * share.actions for name, entry in per_action.items()}
            return metrics["policy_loss"] + metrics["critic_loss"], metrics

        gradients, metrics = jax.grad(loss, has_aux=True)(trained)
        policy, critic = constrain(gradients, mesh)
        return Backward(metrics, (lambda after: policy, lambda after: critic))


def take_steps(
    transformation: optax.GradientTransformation,
    state: ActorCriticState,
    found: Backward,
    hyper: Hyperparameters,
    key: Key[Array, ""],
) -> tuple[ActorCriticState, Metrics]:
    """The steps of the policy and then of the value network, if there is one."""
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
    critic, critic_optimizer = state.critic, state.critic_optimizer
    metrics["critic_grad_norm"] = jnp.float32(0)
    if critic is not None:
        moved = guarded_step(
            transformation,
            critic_gradient(policy.parameters),
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
) -> Scores:
    """Scores of the action tokens under the policy.

    Args:
      networks: how roles are read.
      config: settings of the run; `loss_chunk_size` bounds the logits that exist at a time.
      base: parameters of the reference.
      policy: variables of the policy; differentiable.
      reference_bjd: hidden states of the reference, see `Networks.action_hidden`.
      batch: the actions.
      hyper: temperature and support.
    """

    def score(inputs: tuple[Array, Array, Array]) -> Scores:
        tokens_bj = inputs[-1]
        policy_bjv, reference_bjv = read_policy(networks, base, policy, *inputs, hyper)
        constant_bjv = jax.lax.stop_gradient(policy_bjv)
        return Scores(
            log_prob_bj=of_token(jax.nn.log_softmax(policy_bjv), tokens_bj),
            reference_log_prob_bj=of_token(jax.nn.log_softmax(reference_bjv), tokens_bj),
            kl_bj=categorical_kl(constant_bjv, reference_bjv),
            entropy_bj=entropy(constant_bjv),
        )

    policy_bjd = networks.action_hidden(base, policy, batch)
    inputs = (policy_bjd, reference_bjd, batch.action_tokens_bj)
    scores: Scores = in_chunks(score, inputs, config.finetune.loss_chunk_size)
    return scores


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
