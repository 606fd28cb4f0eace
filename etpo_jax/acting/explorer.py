"""Exploration: a share of the environments acts to find new programs instead of playing well.

Environments that explore sample a flatter policy, or the reference, and draw again what has been
executed before. The others sample the policy as ever, so that training rewards mean what they mean
without exploration.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax

from etpo_jax.acting.formats import Prompt
from etpo_jax.acting.rollout import Actions, SamplingActor
from etpo_jax.exploration import Exploration

_STREAM = 0x4E4F56
"""Separates the keys of exploring actions from those of the others."""


@dataclasses.dataclass(frozen=True)
class Explorer:
    """Samples the actions of exploring environments.

    Attributes:
      actor: samples.
      settings: how is explored.
    """

    actor: SamplingActor
    settings: Exploration

    def act(
        self,
        policy_weights: Any,
        prompts: Sequence[Prompt],
        key: jax.Array,
        executed: Collection[str],
        *,
        reference_weights: Any,
    ) -> Actions:
        """Chooses one action for each prompt, a new one if `redraws` draws find any.

        The log probabilities are those of a single draw: that an action was kept because it is new
        is not in them.

        Args:
          policy_weights: the policy, as the actor takes it.
          prompts: at least one prompt.
          key: typed random key.
          executed: texts of the actions that count as known; those chosen here count too.
          reference_weights: the reference, where sampling needs it.
        """
        weights = policy_weights
        if self.settings.source == "reference":
            weights = reference_weights
        known = set(executed)
        chosen: list[Actions | None] = [None] * len(prompts)
        key = jax.random.fold_in(key, _STREAM)
        for draw in range(1 + self.settings.redraws):
            drawn = self.actor.act(
                weights,
                prompts,
                jax.random.fold_in(key, draw),
                reference_weights=reference_weights,
                flattening=self.settings.temperature,
            )
            for row, kept in enumerate(chosen):
                is_new = drawn.texts[row] not in known
                if kept is None and (is_new or draw == self.settings.redraws):
                    chosen[row] = drawn.rows([row])
                    known.add(drawn.texts[row])
            if all(kept is not None for kept in chosen):
                break
        return Actions.join([kept for kept in chosen if kept is not None])
