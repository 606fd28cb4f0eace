"""What an algorithm does with transitions; the host loop is the same for all of them."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from etpo_jax.batch import Batch
from etpo_jax.config import Config
from etpo_jax.hyperparameters import Hyperparameters
from etpo_jax.networks import Networks
from etpo_jax.train_state import Critic, Role, TrainState
from etpo_jax.update import (
    Metrics,
    constrain,
    initial_state,
    make_measure,
    make_update_step,
)


class Learner(Protocol):
    """An algorithm between collections.

    Attributes:
      state: what a checkpoint holds; assigned when a run is resumed.
      num_updates: gradient steps after each collection.
    """

    state: Any
    num_updates: int

    def policy_trunk(self) -> Role:
        """Variables to sample with; an empty role is the untrained model."""

    def start(self, mean_reward: float) -> None:
        """Called once, with the mean reward of the first collection."""

    def learn(self, batch: Batch) -> Metrics:
        """One gradient step; the metrics may still be on their way."""

    def measure(self, batch: Batch) -> Metrics:
        """`kl_to_reference` and `entropy` of the policy, without learning."""


class Etpo:
    """Algorithm 1."""

    def __init__(self, networks: Networks, base: Any, config: Config, mesh: Mesh):
        self._networks = networks
        self._base = base
        self._hyper = Hyperparameters.of(config)
        self._update_step = make_update_step(networks, config, mesh)
        self._measure = make_measure(networks)
        self.num_updates = config.learning.updates_per_batch
        self.state: TrainState = jax.jit(
            lambda base: constrain(initial_state(networks, base, config), mesh)
        )(base)

    def policy_trunk(self) -> Role:
        return self._networks.policy_trunk(self.state.policy, self.state.critic)

    def start(self, mean_reward: float) -> None:
        """Sets b0 of the critic and its target: an untrained token is then worth the average."""

        def with_offset(critic: Critic) -> Critic:
            # One buffer each: the state is donated.
            offset = jax.device_put(np.float32(mean_reward), critic.offset.sharding)
            return dataclasses.replace(critic, offset=offset)

        self.state = dataclasses.replace(
            self.state,
            critic=with_offset(self.state.critic),
            target_critic=with_offset(self.state.target_critic),
        )

    def learn(self, batch: Batch) -> Metrics:
        self.state, metrics = self._update_step(self.state, self._base, batch, self._hyper)
        return metrics

    def measure(self, batch: Batch) -> Metrics:
        return self._measure(self._base, self.policy_trunk(), batch, self._hyper)


class Reflection:
    """No learning: the untrained model answers and reflects (the paper's baseline)."""

    num_updates = 0

    def __init__(self, networks: Networks, base: Any, config: Config):
        self._base = base
        self._hyper = Hyperparameters.of(config)
        self._measure = make_measure(networks)
        self.state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}

    def policy_trunk(self) -> Role:
        return {}

    def start(self, mean_reward: float) -> None:
        del mean_reward

    def learn(self, batch: Batch) -> Metrics:
        raise TypeError("reflection takes no gradient steps")

    def measure(self, batch: Batch) -> Metrics:
        return self._measure(self._base, {}, batch, self._hyper)


def make_learner(networks: Networks, base: Any, config: Config, mesh: Mesh) -> Learner:
    """The learner of `--algorithm`."""
    if config.run.algorithm == "reflection":
        return Reflection(networks, base, config)
    return Etpo(networks, base, config, mesh)
