"""Scores of action tokens, from which the losses are computed without the vocabulary.

Logits over the vocabulary are the largest arrays of a gradient step: [b, j, v] for each of four
networks. They are reduced to one number per token where they are made, for all positions at once or
for one chunk of positions after the other; in chunks, the backward pass makes them again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.gradients import Metrics
from etpo_jax.algorithms.networks import Critic, Networks, SoftQ, read_soft_q
from etpo_jax.distribution import TILT, Reference
from etpo_jax.divergence import categorical_kl, entropy
from etpo_jax.losses import policy_objective, uniform_policy_objective
from etpo_jax.roles import Role
from etpo_jax.soft_q import soft_value


class Roles(NamedTuple):
    """The trained networks; the reference is the base.

    Attributes:
      policy: empty where it is tied to the critic.
      target_critic: None where the loss reads no target critic at the tokens of the action.
    """

    policy: Role
    critic: Critic
    target_critic: Critic | None


class Hidden(NamedTuple):
    """Last hidden states of each network that score the action tokens; None for no network."""

    reference_bjd: Float[Array, "b j d"]
    policy_bjd: Float[Array, "b j d"] | None
    critic_bjd: Float[Array, "b j d"]
    target_bjd: Float[Array, "b j d"] | None


class TokenScores(NamedTuple):
    """One number per action token, float32.

    Attributes:
      q_bj: Q_theta of the token; differentiable.
      state_value_bj: the soft value just before it that the critic implies; differentiable.
      log_ratio_bj: log(pi_Q / rho) of the token, pi_Q the policy that Q implies; differentiable.
      policy_objective_bj: what the policy minimises at the token; differentiable; 0 if tied.
      value_bj: V, the soft value of pi under the target critic; 0 without one.
      target_q_bj: the target critic's Q of the token; 0 without one.
      log_prob_bj: log pi of the token; differentiable.
      kl_bj: KL(pi || rho), nats.
      entropy_bj: of pi, nats.
    """

    q_bj: Float[Array, "b j"]
    state_value_bj: Float[Array, "b j"]
    log_ratio_bj: Float[Array, "b j"]
    policy_objective_bj: Float[Array, "b j"]
    value_bj: Float[Array, "b j"]
    target_q_bj: Float[Array, "b j"]
    log_prob_bj: Float[Array, "b j"]
    kl_bj: Float[Array, "b j"]
    entropy_bj: Float[Array, "b j"]


def score_tokens(
    networks: Networks,
    learning: Any,
    base: Any,
    roles: Roles,
    hidden: Hidden,
    tokens_bj: Int[Array, "b j"],
    hyper: Hyperparameters,
    *,
    chunk_size: int = 0,
) -> TokenScores:
    """Scores every token of the actions.

    Args:
      networks: how roles are read.
      learning: settings of ETPO, `etpo_jax.algorithms.etpo.EtpoConfig`.
      base: parameters of the reference.
      roles: networks whose output layers are used; differentiable in policy and critic.
      hidden: hidden states of the same networks; differentiable in policy and critic.
      tokens_bj: the sampled tokens.
      hyper: beta, and the temperature and support of pi and rho.
      chunk_size: positions at a time; 0 is all.
    """

    def score(inputs: tuple[Hidden, Array]) -> TokenScores:
        hidden, tokens_bj = inputs
        return _score(networks, learning, base, roles, hidden, tokens_bj, hyper)

    scores: TokenScores = in_chunks(score, (hidden, tokens_bj), chunk_size)
    return scores


def in_chunks(score: Callable[[Any], Any], inputs: Any, chunk_size: int) -> Any:
    """Scores positions of actions chunk by chunk, so that logits exist for one chunk at a time.

    Args:
      score: takes arrays like `inputs` with fewer positions, returns a tree of [b, positions].
      inputs: tree of [b, j, ...].
      chunk_size: positions at a time; 0 is all.

    Returns:
      The tree that `score` returns, for all positions: [b, j].
    """
    j = jax.tree.leaves(inputs)[0].shape[1]
    if not 0 < chunk_size < j:
        return score(inputs)
    num_chunks = -(-j // chunk_size)

    def split(x: Array) -> Array:
        """[b, j, ...] to [chunks, b, positions, ...]; each chunk stays spread over devices."""
        padding = [(0, 0), (0, num_chunks * chunk_size - j)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return x.reshape(x.shape[0], num_chunks, chunk_size, *x.shape[2:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(x.shape[1], num_chunks * chunk_size)[:, :j]

    chunks = jax.tree.map(split, inputs)
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(score), chunks))


def _score(
    networks: Networks,
    learning: Any,
    base: Any,
    roles: Roles,
    hidden: Hidden,
    tokens_bj: Array,
    hyper: Hyperparameters,
) -> TokenScores:
    beta = hyper.beta
    reference = read_reference(networks, base, hidden.reference_bjd, tokens_bj, hyper)
    reference_bjv = reference.logits_bjv

    policy_bjv = None
    if hidden.policy_bjd is not None:
        policy_bjv = read_logits(networks, base, roles.policy, hidden.policy_bjd, reference, hyper)

    def read(critic: Critic, hidden_bjd: Array) -> tuple[SoftQ, Array]:
        return read_critic(networks, base, critic, hidden_bjd, policy_bjv, reference, hyper)

    soft_q, critic_logits_bjv = read(roles.critic, hidden.critic_bjd)
    if policy_bjv is None:
        policy_bjv = critic_logits_bjv  # pi is the softmax of the critic's logits
    if hidden.policy_bjd is None or networks.q_parameterization == "policy":
        objective_bj = jnp.zeros(tokens_bj.shape)  # pi already is the policy that Q implies
    elif learning.policy_loss == "uniform":
        objective_bj = uniform_policy_objective(policy_bjv, soft_q.q_bjv, beta=beta)
    else:
        objective_bj = policy_objective(
            policy_bjv,
            reference_bjv,
            soft_q.q_bjv,
            beta=beta,
            target="exp_q" if learning.policy_loss == "eq7" else "reference_exp_q",
        )
    value_bj = target_q_bj = jnp.zeros(tokens_bj.shape)
    constant_bjv = jax.lax.stop_gradient(policy_bjv)
    if roles.target_critic is not None and hidden.target_bjd is not None:
        target, _ = read(roles.target_critic, hidden.target_bjd)
        value_bj = soft_value(constant_bjv, reference_bjv, target.q_bjv, beta=beta)
        target_q_bj = jax.lax.stop_gradient(of_token(target.q_bjv, tokens_bj))
    return TokenScores(
        q_bj=of_token(soft_q.q_bjv, tokens_bj),
        state_value_bj=soft_q.value_bj,
        log_ratio_bj=of_token(soft_q.log_ratio_bjv, tokens_bj),
        policy_objective_bj=objective_bj,
        value_bj=value_bj,
        target_q_bj=target_q_bj,
        log_prob_bj=of_token(jax.nn.log_softmax(policy_bjv), tokens_bj),
        kl_bj=categorical_kl(constant_bjv, reference_bjv),
        entropy_bj=entropy(constant_bjv),
    )


def read_reference(
    networks: Networks,
    base: Any,
    hidden_bjd: Float[Array, "b j d"],
    tokens_bj: Int[Array, "b j"],
    hyper: Hyperparameters,
) -> Reference:
    """The reference's logits at the temperature and within the support, and the support."""
    raw_bjv = networks.logits(base, {}, hidden_bjd)
    support_bjv = hyper.distribution.support(raw_bjv)
    # A sampled token was in the support; at its edge, rounding in another program may say otherwise
    # and would make its probability nearly 0.
    support_bjv |= jax.nn.one_hot(tokens_bj, raw_bjv.shape[-1], dtype=jnp.bool_)
    logits_bjv = hyper.distribution.logits(raw_bjv, support_bjv)
    return Reference(jax.lax.stop_gradient(logits_bjv), support_bjv)


def read_policy(
    networks: Networks,
    base: Any,
    policy: Role,
    policy_bjd: Float[Array, "b j d"],
    reference_bjd: Float[Array, "b j d"],
    tokens_bj: Int[Array, "b j"],
    hyper: Hyperparameters,
) -> tuple[Float[Array, "b j v"], Float[Array, "b j v"]]:
    """Processed logits of the policy and of the reference, see `read_logits`."""
    reference = read_reference(networks, base, reference_bjd, tokens_bj, hyper)
    policy_bjv = read_logits(networks, base, policy, policy_bjd, reference, hyper)
    return policy_bjv, reference.logits_bjv


def read_logits(
    networks: Networks,
    base: Any,
    role: Role,
    hidden_bjd: Float[Array, "*b d"],
    reference: Reference,
    hyper: Hyperparameters,
) -> Float[Array, "*b v"]:
    """Logits of a role at the temperature, within the support and with its tilt, if it has one."""
    raw_bjv = networks.logits(base, role, hidden_bjd)
    return hyper.distribution.tilted(raw_bjv, reference, role.get(TILT))


def read_critic(
    networks: Networks,
    base: Any,
    critic: Critic,
    hidden_bjd: Float[Array, "*b d"],
    policy_logits_bjv: Float[Array, "*b v"] | None,
    reference: Reference,
    hyper: Hyperparameters,
) -> tuple[SoftQ, Float[Array, "*b v"]]:
    """Q of a critic at hidden states, and the logits that it is read from.

    The logits are the critic's own or the policy's, processed as by `read_logits`.
    """
    if networks.q_parameterization == "policy" and policy_logits_bjv is not None:
        logits_bjv = policy_logits_bjv
    else:
        logits_bjv = read_logits(networks, base, critic.trunk, hidden_bjd, reference, hyper)
    soft_q = read_soft_q(
        networks.q_parameterization,
        logits_bjv,
        reference.logits_bjv,
        networks.head(critic, hidden_bjd),
        beta=hyper.beta,
    )
    return soft_q, logits_bjv


def of_token(
    values_bjv: Float[Array, "b j v"], tokens_bj: Int[Array, "b j"]
) -> Float[Array, "b j"]:
    """Picks the entry of the given token at each position."""
    return jnp.take_along_axis(values_bjv, tokens_bj[..., None], axis=-1)[..., 0]


def divergences(
    kl_bj: Float[Array, "b j"], entropy_bj: Float[Array, "b j"], batch: Batch
) -> Metrics:
    """KL to the reference and entropy in nats per action, summed over its tokens."""

    def per_action(values_bj: Array) -> Array:
        return jnp.mean(jnp.sum(jnp.where(batch.action_mask_bj, values_bj, 0.0), axis=1))

    return {"kl_to_reference": per_action(kl_bj), "entropy": per_action(entropy_bj)}


class Divergences(NamedTuple):
    """Divergences of pi at the positions of sampled actions, summed along each action; nats.

    Their means over actions that pi sampled estimate the divergences of whole actions without bias.

    Attributes:
      kl_b: KL(pi || rho), rho restricted to the support and renormalised as pi is.
      full_kl_b: KL(pi || rho), rho over the whole vocabulary at the same temperature.
      entropy_b: entropy of pi.
    """

    kl_b: Float[Array, "b"]
    full_kl_b: Float[Array, "b"]
    entropy_b: Float[Array, "b"]


def make_divergences(
    networks: Networks,
) -> Callable[[Any, Role, Batch, Hyperparameters], Divergences]:
    """Makes the jitted (base, policy trunk, batch, hyperparameters) -> divergences of each action.

    The support mask turns rho into rho 1_S / Z with Z = rho(S), position by position. Since
    pi is 0 outside S, KL(pi || rho) = KL(pi || rho 1_S / Z) - log Z at every position, so that the
    divergence from the unrestricted reference exceeds the other one by E_pi[sum_j -log Z_j].
    """

    def divergences_of(base: Any, trunk: Role, batch: Batch, hyper: Hyperparameters) -> Divergences:
        raw_bjv = networks.logits(base, {}, networks.action_hidden(base, {}, batch))
        reference = hyper.distribution.reference(raw_bjv)
        hidden_bjd = networks.action_hidden(base, trunk, batch)
        policy_bjv = read_logits(networks, base, trunk, hidden_bjd, reference, hyper)
        full_bjv = hyper.distribution.logits(raw_bjv, jnp.ones_like(reference.support_bjv))
        along_bj = (
            categorical_kl(policy_bjv, reference.logits_bjv),
            categorical_kl(policy_bjv, full_bjv),
            entropy(policy_bjv),
        )
        mask_bj = batch.action_mask_bj
        return Divergences(*(jnp.sum(jnp.where(mask_bj, x, 0.0), axis=1) for x in along_bj))

    return jax.jit(divergences_of)


def make_measure(
    networks: Networks,
) -> Callable[[Any, Role, Batch, Hyperparameters], Metrics]:
    """Makes the jitted (base, policy trunk, batch, hyperparameters) -> mean KL and entropy."""
    divergences_of = make_divergences(networks)

    def measure(base: Any, trunk: Role, batch: Batch, hyper: Hyperparameters) -> Metrics:
        found = divergences_of(base, trunk, batch, hyper)
        return {"kl_to_reference": jnp.mean(found.kl_b), "entropy": jnp.mean(found.entropy_b)}

    return jax.jit(measure)
