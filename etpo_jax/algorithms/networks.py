"""The four networks over one architecture: policy, reference, critic and target critic.

A role is a choice of variables for one `apply`. The reference is the frozen base alone; with
adapters the other three are their adapter over that base, with full fine-tuning each has parameters
of its own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from etpo_jax.acting.transitions import Batch
from etpo_jax.distribution import NUM_TILTS, TILT
from etpo_jax.roles import Role
from etpo_jax.soft_q import optimal_soft_value
from models import lora
from models.transformer import Decoder, positions

HAS_VALUE_HEAD = ("dueling", "policy")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Critic:
    """A network whose output layer is read as Q over the vocabulary, or that has a value head.

    Attributes:
      trunk: variables of the trunk, as every network has them.
      offset: b0, the value where nothing has been learnt; near the mean reward of the first batch.
      value: weights [d] of the scalar head v(h) - b0; None for a critic without one.
    """

    trunk: Role
    offset: Float[Array, ""]
    value: Float[Array, "d"] | None

    def with_offset(self, value: float) -> "Critic":
        """The critic with this b0, in a buffer of its own, because train states are donated."""
        offset = jax.device_put(np.float32(value), self.offset.sharding)
        return dataclasses.replace(self, offset=offset)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a gradient step changes; the frozen base is kept beside it.

    Attributes:
      policy: pi_phi; an empty dict where the policy is tied to the critic.
      critic: Q_theta.
      target_critic: its moving average, in float32: it moves by small parts of differences.
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
    """The moving average lambda * target + (1 - lambda) * online (last line of Algorithm 1).

    For adapters it averages the factors, which is not the average of their products.
    """
    return optax.incremental_update(online, target, 1.0 - polyak_lambda)


class SoftQ(NamedTuple):
    """A critic's reading of every token.

    Attributes:
      q_bjv: Q in reward units.
      value_bj: beta log E_rho[exp(Q / beta)].
      log_ratio_bjv: (Q - value) / beta = log(pi_Q / rho), pi_Q the policy that Q implies.
    """

    q_bjv: Float[Array, "*b v"]
    value_bj: Float[Array, "*b"]
    log_ratio_bjv: Float[Array, "*b v"]


def read_soft_q(
    parameterization: str,
    critic_logits_bjv: Float[Array, "*b v"],
    reference_logits_bjv: Float[Array, "*b v"],
    head_bj: Float[Array, "*b"],
    *,
    beta: float | Float[Array, ""],
) -> SoftQ:
    """Reads critic logits l as Q; both logits are processed alike (temperature, support).

    residual: Q = beta (l - l_rho) + b0, constant at the start, so that the first optimal policy is
    rho itself. dueling: Q = v(h) + beta (log softmax l - log rho), whose soft value is exactly the
    scalar head v. policy: dueling with the policy's own logits, so that Q implies pi itself.
    logits: Q = l, as in the authors' code. beta_logits: Q = beta l.

    With "policy", gradients with respect to the logits are those of a regression divided by beta:
    the size of the policy's steps then does not depend on beta.

    Args:
      parameterization: one of the names above.
      critic_logits_bjv: logits l of the critic, or of the policy for "policy".
      reference_logits_bjv: logits l_rho of the reference.
      head_bj: the scalar head v(h) of a dueling or policy critic, b0 otherwise; reward units.
      beta: reward per nat.
    """
    if parameterization in HAS_VALUE_HEAD:
        log_ratio_bjv = jax.nn.log_softmax(critic_logits_bjv) - jax.nn.log_softmax(
            reference_logits_bjv
        )
        if parameterization == "policy":
            constant_bjv = jax.lax.stop_gradient(log_ratio_bjv)
            log_ratio_bjv = constant_bjv + (log_ratio_bjv - constant_bjv) / beta
        return SoftQ(head_bj[..., None] + beta * log_ratio_bjv, head_bj, log_ratio_bjv)
    if parameterization == "residual":
        difference_bjv = critic_logits_bjv - reference_logits_bjv
        normalizer_bj = jax.nn.logsumexp(critic_logits_bjv, axis=-1) - jax.nn.logsumexp(
            reference_logits_bjv, axis=-1
        )
        return SoftQ(
            head_bj[..., None] + beta * difference_bjv,
            head_bj + beta * normalizer_bj,
            difference_bjv - normalizer_bj[..., None],
        )
    q_bjv = critic_logits_bjv if parameterization == "logits" else beta * critic_logits_bjv
    value_bj = optimal_soft_value(reference_logits_bjv, q_bjv, beta=beta)
    return SoftQ(q_bjv, value_bj, (q_bjv - value_bj[..., None]) / beta)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The trunk and how its roles are read; holds no arrays.

    Attributes:
      model: the decoder; with `lora`, roles are adapters over the base.
      q_parameterization: see `read_soft_q`.
      tie_policy: whether the policy is the softmax of the critic's logits.
      trained_dtype: storage of what full fine-tuning trains.
      has_tilt: whether the trained roles have the coefficients of a tilt.
    """

    model: Decoder
    q_parameterization: str = "residual"
    tie_policy: bool = False
    trained_dtype: Any = jnp.float32
    has_tilt: bool = False

    def initial_policy(self, base: Any, key: Key[Array, ""]) -> Role:
        """A policy equal to rho: a copy, because states are donated, or a zero adapter."""
        return {} if self.tie_policy else self._initial_role(base, key)

    def initial_critic(self, base: Any, key: Key[Array, ""]) -> Critic:
        """A critic equal to rho with a zero value head and b0 = 0; the algorithm sets b0 later."""
        value = None
        if self.q_parameterization in HAS_VALUE_HEAD:
            value = jnp.zeros((self.model.config.hidden_size,), jnp.float32)
        return Critic(self._initial_role(base, key), offset=jnp.zeros((), jnp.float32), value=value)

    def _initial_role(self, base: Any, key: Key[Array, ""]) -> Role:
        tilt = {TILT: jnp.zeros((NUM_TILTS,), jnp.float32)} if self.has_tilt else {}
        if self.model.lora is not None:
            return {"lora": lora.init(key, base, self.model.lora), **tilt}
        params = jax.tree.map(lambda leaf: jnp.array(leaf, self.trained_dtype), base)
        return {"params": params, **tilt}

    def policy_trunk(self, policy: Role, critic: Critic) -> Role:
        """The variables that actions are sampled with."""
        return critic.trunk if self.tie_policy else policy

    def hidden(
        self,
        base: Any,
        role: Role,
        tokens_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
        *,
        last: int | None = None,
        num_blocks: int = 0,
    ) -> Float[Array, "b q d"]:
        """Last hidden states of all positions, or of the last so many.

        An empty role is the reference. `num_blocks` packs the rows, see `Decoder.hidden`.
        """
        hidden: Any = self.model.apply(
            _variables(base, role),
            tokens_bs,
            positions(mask_bs),
            mask_bs,
            last,
            num_blocks,
            method="hidden",
        )
        return hidden

    def action_hidden(self, base: Any, role: Role, batch: Batch) -> Float[Array, "b j d"]:
        """Hidden states that score the action tokens of a batch."""
        tokens_bs = jnp.concatenate([batch.prompt_tokens_bp, batch.action_tokens_bj], axis=1)
        mask_bs = jnp.concatenate([batch.prompt_mask_bp, batch.action_mask_bj], axis=1)
        # The last position of the prompt scores the first token; the last token scores nothing.
        last = batch.action_tokens_bj.shape[1] + 1
        num_blocks = batch.blocks.action
        return self.hidden(base, role, tokens_bs, mask_bs, last=last, num_blocks=num_blocks)[:, :-1]

    def state_hidden(
        self,
        base: Any,
        role: Role,
        tokens_bp: Int[Array, "b p"],
        mask_bp: Bool[Array, "b p"],
        num_blocks: int = 0,
    ) -> Float[Array, "b d"]:
        """Hidden states just before the first token of an action, from left padded prompts."""
        hidden = self.hidden(base, role, tokens_bp, mask_bp, last=1, num_blocks=num_blocks)
        return hidden[:, 0]

    def logits(
        self, base: Any, role: Role, hidden_bjd: Float[Array, "*b d"]
    ) -> Float[Array, "*b v"]:
        """Float32 logits of hidden states, unprocessed and without the role's tilt."""
        logits: Any = self.model.apply(_variables(base, role), hidden_bjd, method="logits")
        return logits

    def head(self, critic: Critic, hidden_bjd: Float[Array, "*b d"]) -> Float[Array, "*b"]:
        """The value head v(h) of a critic that has one, b0 everywhere for others."""
        if critic.value is None:
            return jnp.broadcast_to(critic.offset, hidden_bjd.shape[:-1])
        return critic.offset + hidden_bjd.astype(jnp.float32) @ critic.value


def _variables(base: Any, role: Role) -> dict[str, Any]:
    """The variables of the decoder in a role."""
    return {"params": base, **{name: tree for name, tree in role.items() if name != TILT}}
