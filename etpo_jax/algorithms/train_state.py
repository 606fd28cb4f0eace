"""What training changes: policy, critic and target critic with their optimiser states."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from etpo_jax.roles import Role


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Critic:
    """A vocabulary-sized Q network.

    Attributes:
      trunk: as for every role; its language-model head is read as Q.
      offset: b0, the value where nothing has been learnt; near the first batch's mean reward.
      value: weights [d] of the scalar head v(h) - b0 of a dueling critic, else None.
    """

    trunk: Role
    offset: Float[Array, ""]
    value: Float[Array, "d"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a gradient step changes; the frozen base is kept beside it.

    Attributes:
      policy: pi_phi; an empty dict where the policy is tied to the critic.
      critic: Q_theta.
      target_critic: its Polyak average, in float32: it moves by small parts of differences.
      policy_optimizer, critic_optimizer: optax states.
      step: gradient steps taken.
    """

    policy: Role
    critic: Critic
    target_critic: Critic
    policy_optimizer: Any
    critic_optimizer: Any
    step: Int[Array, ""]


def polyak(target: Any, online: Any, polyak_lambda: float | Float[Array, ""]) -> Any:
    """lambda * target + (1 - lambda) * online, leaf by leaf (last line of Algorithm 1).

    For adapters it averages the factors, which is not the average of their products.
    """
    return jax.tree.map(
        lambda old, new: polyak_lambda * old + (1.0 - polyak_lambda) * new, target, online
    )
