"""Credit of every token of some actions: the numbers of the report's token inspector."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from etpo_jax.acting.transitions import Transition
from models.tokenizer import Tokenizer

NUM_ALTERNATIVES = 5
_DIGITS = 4


class Inspection(NamedTuple):
    """Numbers of each action token, in units of reward or in nats.

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
      top_probs_bjk: probabilities of the most likely tokens under pi.
      top_q_bjk: Q of the most likely tokens.
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


def to_rows(
    transitions: Sequence[Transition], inspection: Inspection, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The inspection as JSON values, one for each action.

    Args:
      transitions: the actions that were inspected.
      inspection: their numbers, fetched from the device; rows as in `transitions`, padded.
      tokenizer: decodes the ids.

    Returns:
      For each action `prompt`, `reward`, `continues` and `tokens`; for each token `text`, "" for a
      stop token, the numbers of `Inspection`, and `top`: text, probability and Q of
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
