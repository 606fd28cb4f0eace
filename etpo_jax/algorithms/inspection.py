"""What every token of some actions was credited with: the numbers of the report's inspector."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from etpo_jax.acting.transitions import Batch, Transition
from etpo_jax.algorithms.etpo import hidden_states, next_state_value, targets_of
from etpo_jax.algorithms.hyperparameters import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.token_scores import Roles, read_critic, read_reference, score_tokens
from etpo_jax.algorithms.train_state import TrainState
from etpo_jax.config import Config
from models.tokenizer import Tokenizer

NUM_ALTERNATIVES = 5
_DIGITS = 4


class Inspection(NamedTuple):
    """Numbers of each action token; rewards and logarithms as in the losses.

    Attributes:
      q_bj: Q of the token, by the critic.
      value_bj: the soft value just before it: V of pi under the target critic, or for path
        consistency the critic's own.
      target_bj: what Q (for path consistency the value) is regressed on; target less value is the
        credit of the token.
      log_prob_bj: log pi of the token.
      log_reference_bj: log rho of the token.
      kl_bj: KL(pi || rho) just before it.
      top_tokens_bjk: the most likely tokens under pi.
      top_probs_bjk: their probabilities.
      top_q_bjk: their Q.
    """

    q_bj: Float[Array, "b j"]
    value_bj: Float[Array, "b j"]
    target_bj: Float[Array, "b j"]
    log_prob_bj: Float[Array, "b j"]
    log_reference_bj: Float[Array, "b j"]
    kl_bj: Float[Array, "b j"]
    top_tokens_bjk: Int[Array, "b j k"]
    top_probs_bjk: Float[Array, "b j k"]
    top_q_bjk: Float[Array, "b j k"]


Inspect = Callable[[TrainState, Any, Batch, Hyperparameters], Inspection]


def make_inspect(networks: Networks, config: Config) -> Inspect:
    """The jitted (state, base, batch, hyperparameters) -> inspection; nothing changes the state."""
    learning = config.learning

    def inspect(state: TrainState, base: Any, batch: Batch, hyper: Hyperparameters) -> Inspection:
        trunk = networks.policy_trunk(state.policy, state.critic)
        tokens_bj = batch.action_tokens_bj
        hiddens = hidden_states(networks, base, state, batch)
        roles = Roles(state.policy, state.critic, state.target_critic)
        scores = score_tokens(networks, learning, base, roles, hiddens, tokens_bj, hyper)
        next_value_b = next_state_value(networks, learning, base, state, batch, hyper)
        reference_bjv, support_bjv = read_reference(
            networks, base, hiddens.reference_bjd, tokens_bj, hyper
        )
        policy_bjd = hiddens.critic_bjd if hiddens.policy_bjd is None else hiddens.policy_bjd
        policy_bjv = hyper.distribution.logits(
            networks.logits(base, trunk, policy_bjd), support_bjv
        )
        soft_q, _ = read_critic(
            networks,
            base,
            state.critic,
            hiddens.critic_bjd,
            policy_bjv,
            reference_bjv,
            support_bjv,
            hyper,
        )
        top_probs_bjk, top_tokens_bjk = jax.lax.top_k(jax.nn.softmax(policy_bjv), NUM_ALTERNATIVES)
        is_path = learning.critic_loss == "path"
        return Inspection(
            q_bj=scores.q_bj,
            value_bj=scores.state_value_bj if is_path else scores.value_bj,
            target_bj=targets_of(learning, scores, batch, next_value_b, hyper),
            log_prob_bj=scores.log_prob_bj,
            log_reference_bj=_of_tokens(jax.nn.log_softmax(reference_bjv), tokens_bj[..., None])[
                ..., 0
            ],
            kl_bj=scores.kl_bj,
            top_tokens_bjk=top_tokens_bjk,
            top_probs_bjk=top_probs_bjk,
            top_q_bjk=_of_tokens(soft_q.q_bjv, top_tokens_bjk),
        )

    return jax.jit(inspect)


def to_rows(
    transitions: Sequence[Transition], inspection: Inspection, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The inspection as JSON values, an action each.

    Args:
      transitions: what was inspected.
      inspection: fetched; its rows are those of `transitions`, padded.
      tokenizer: of the ids.

    Returns:
      For each action `prompt`, `reward`, `continues` and `tokens`; for each token `text`, "" where
      it ends the action, the numbers of `Inspection`, and `top`: text, probability and Q of
      the most likely tokens, those with a probability that rounds to 0 left out.
    """
    arrays = {
        name: np.round(np.asarray(array, np.float64), _DIGITS)
        for name, array in inspection._asdict().items()
    }

    def token(row: int, j: int, token_id: int) -> dict[str, Any]:
        numbers = {
            name.removesuffix("_bj"): float(array[row, j])
            for name, array in arrays.items()
            if name.endswith("_bj")
        }
        top = [
            [tokenizer.decode([int(other)]), float(probability), float(q)]
            for other, probability, q in zip(
                arrays["top_tokens_bjk"][row, j],
                arrays["top_probs_bjk"][row, j],
                arrays["top_q_bjk"][row, j],
                strict=True,
            )
            if probability > 0
        ]
        return {"text": tokenizer.decode([token_id]), **numbers, "top": top}

    return [
        {
            "prompt": tokenizer.decode(transition.prompt_tokens.tolist()),
            "reward": round(transition.reward, _DIGITS),
            "continues": transition.next_prompt_tokens is not None,
            "tokens": [
                token(row, j, int(token_id)) for j, token_id in enumerate(transition.action_tokens)
            ],
        }
        for row, transition in enumerate(transitions)
    ]


def _of_tokens(values_bjv: Array, tokens_bjk: Array) -> Array:
    return jnp.take_along_axis(values_bjv, tokens_bjk, axis=-1)
