"""What an algorithm does with transitions; the host loop is the same for all of them."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import actor_critic
from etpo_jax.algorithms.actor_critic import ActorCriticState
from etpo_jax.algorithms.etpo import (
    Metrics,
    constrain,
    initial_state,
    make_measure,
    make_targets,
    make_update_step,
)
from etpo_jax.algorithms.hyperparameters import Hyperparameters
from etpo_jax.algorithms.inspection import Inspection, make_inspect
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.train_state import Critic, TrainState
from etpo_jax.config import Config
from etpo_jax.roles import Role


class Learner(Protocol):
    """An algorithm between collections; what it learns from is said by the protocols below.

    Attributes:
      state: what a checkpoint holds; assigned when a run is resumed.
    """

    state: Any

    def policy_trunk(self) -> Role:
        """Variables to sample with; an empty role is the untrained model."""

    def start(self, mean_reward: float) -> None:
        """Called once, with the mean reward of the first collection."""


@runtime_checkable
class MeasuringLearner(Learner, Protocol):
    """Says how its policy is, from transitions."""

    def measure(self, batch: Batch) -> Metrics:
        """`kl_to_reference` and `entropy` of the policy, without learning."""


@runtime_checkable
class BilledLearner(Learner, Protocol):
    """Stands for a model elsewhere, whose answers are paid for."""

    def usage(self) -> dict[str, float]:
        """`acting.external.BILLED`, of the whole run so far."""


@runtime_checkable
class ReplayLearner(MeasuringLearner, Protocol):
    """Learns from minibatches of the replay, the last of them with new transitions.

    Attributes:
      num_updates: gradient steps after each collection.
    """

    num_updates: int

    def learn(self, batch: Batch) -> Metrics:
        """One gradient step; the metrics may still be on their way."""

    def targets(self, batch: Batch) -> Float[Array, "b j"]:
        """What the critic would regress on now, token by token."""


@runtime_checkable
class CollectionLearner(MeasuringLearner, Protocol):
    """Learns from each collection as a whole and never again: on-policy."""

    def learn_collection(self, batch: Batch, rng: np.random.Generator) -> list[Metrics]:
        """All gradient steps on one collection; `rng` draws the minibatches."""


@runtime_checkable
class InspectableLearner(Learner, Protocol):
    """Says what it credits every token with."""

    def inspect(self, batch: Batch) -> Inspection:
        """Numbers for the report; learns nothing."""


class Etpo:
    """Algorithm 1."""

    def __init__(self, networks: Networks, base: Any, config: Config, mesh: Mesh):
        self._networks = networks
        self._base = base
        self._hyper = Hyperparameters.of(config)
        self._update_step = make_update_step(networks, config, mesh)
        self._targets = make_targets(networks, config)
        self._measure = make_measure(networks)
        self._inspect = make_inspect(networks, config)
        self.num_updates = config.learning.updates_per_batch
        self.state: TrainState = jax.jit(
            lambda base: constrain(initial_state(networks, base, config), mesh)
        )(base)

    def policy_trunk(self) -> Role:
        return self._networks.policy_trunk(self.state.policy, self.state.critic)

    def start(self, mean_reward: float) -> None:
        """Sets b0 of the critic and its target: an untrained token is then worth the average."""

        self.state = dataclasses.replace(
            self.state,
            critic=_with_offset(self.state.critic, mean_reward),
            target_critic=_with_offset(self.state.target_critic, mean_reward),
        )

    def learn(self, batch: Batch) -> Metrics:
        self.state, metrics = self._update_step(self.state, self._base, batch, self._hyper)
        return metrics

    def targets(self, batch: Batch) -> Float[Array, "b j"]:
        return self._targets(self.state, self._base, batch, self._hyper)

    def inspect(self, batch: Batch) -> Inspection:
        return self._inspect(self.state, self._base, batch, self._hyper)

    def measure(self, batch: Batch) -> Metrics:
        return self._measure(self._base, self.policy_trunk(), batch, self._hyper)


class PolicyGradient:
    """PPO-KL and POAD: several clipped steps on each collection, which is then given up."""

    def __init__(self, networks: Networks, base: Any, config: Config, mesh: Mesh):
        # The value network has a head of its own, whatever Q would be read from.
        networks = dataclasses.replace(networks, q_parameterization="dueling", tie_policy=False)
        self._base = base
        self._hyper = Hyperparameters.of(config)
        self._minibatch_size = config.learning.minibatch_size
        self._labels = actor_critic.make_labels(networks, config)
        self._step = actor_critic.make_step(networks, config, mesh)
        self._measure = make_measure(networks)
        self._num_updates = config.learning.updates_per_batch
        self.state: ActorCriticState = jax.jit(
            lambda base: constrain(actor_critic.initial_state(networks, base, config), mesh)
        )(base)

    def policy_trunk(self) -> Role:
        return self.state.policy

    def start(self, mean_reward: float) -> None:
        """Sets the value where nothing has been learnt."""
        if self.state.critic is not None:
            critic = _with_offset(self.state.critic, mean_reward)
            self.state = dataclasses.replace(self.state, critic=critic)

    def learn_collection(self, batch: Batch, rng: np.random.Generator) -> list[Metrics]:
        labels = self._labels(self.state, self._base, batch, self._hyper)
        learned = []
        size = len(batch.reward_b)
        for rows in minibatches(size, self._minibatch_size, self._num_updates, rng):
            self.state, metrics = self._step(
                self.state, self._base, batch, labels, rows, self._hyper
            )
            learned.append(metrics)
        return learned

    def measure(self, batch: Batch) -> Metrics:
        return self._measure(self._base, self.policy_trunk(), batch, self._hyper)


class Reflection:
    """No learning: the untrained model answers and reflects (the paper's baseline)."""

    def __init__(self, networks: Networks, base: Any, config: Config):
        self._base = base
        self._hyper = Hyperparameters.of(config)
        self._measure = make_measure(networks)
        self.state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}

    def policy_trunk(self) -> Role:
        return {}

    def start(self, mean_reward: float) -> None:
        del mean_reward

    def measure(self, batch: Batch) -> Metrics:
        return self._measure(self._base, {}, batch, self._hyper)


def make_learner(networks: Networks, base: Any, config: Config, mesh: Mesh) -> Learner:
    """The learner of `--algorithm`."""
    if config.run.algorithm == "reflection":
        return Reflection(networks, base, config)
    if config.run.algorithm in ("ppo_kl", "poad"):
        return PolicyGradient(networks, base, config, mesh)
    return Etpo(networks, base, config, mesh)


def _with_offset(critic: Critic, value: float) -> Critic:
    """The critic with this b0, in a buffer of its own: the state is donated."""
    offset = jax.device_put(np.float32(value), critic.offset.sharding)
    return dataclasses.replace(critic, offset=offset)


def minibatches(
    size: int, minibatch_size: int, count: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Rows of `count` minibatches: passes in random order, each cut into pieces of one size.

    A last piece that is too short is filled up from the beginning of its pass.
    """
    rows = np.empty(0, np.int32)
    for _ in range(count):
        if not len(rows):
            rows = rng.permutation(size).astype(np.int32)
            rows = np.resize(rows, -(-size // minibatch_size) * minibatch_size)
        rows, chosen = rows[minibatch_size:], rows[:minibatch_size]
        yield chosen
