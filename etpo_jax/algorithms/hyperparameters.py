"""Settings of the losses that are traced, so that trying another value does not compile again."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from etpo_jax.config import Config
from etpo_jax.distribution import Distribution


class Hyperparameters(NamedTuple):
    """float32 scalars; see the flags of the same names. No trust region is an infinite one."""

    beta: Float[Array, ""]
    gamma: Float[Array, ""]
    gamma_within: Float[Array, ""]
    lambda_within: Float[Array, ""]
    polyak_lambda: Float[Array, ""]
    clip_ratio: Float[Array, ""]
    gae_lambda: Float[Array, ""]
    trust_region: Float[Array, ""]
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
            "clip_ratio": learning.clip_ratio,
            "gae_lambda": learning.gae_lambda,
            "trust_region": learning.trust_region or np.inf,
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
