"""The distributions pi and rho of sampling and losses: temperature and support of logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e9
"""Logit of a token outside the support; finite, because 0 * -inf would be NaN."""


class Distribution(NamedTuple):
    """Temperature and support that turn a model's logits into the logits of pi or rho.

    Attributes:
      temperature: divisor of the logits, above 0.
      support_threshold: smallest probability under rho of a token in the support.
    """

    temperature: Float[Array, ""]
    support_threshold: Float[Array, ""]

    def support(self, reference_logits_bjv: Float[Array, "*b v"]) -> Bool[Array, "*b v"]:
        """Mask of the tokens with at least the threshold's probability under rho.

        The most likely token under rho always belongs to it.
        """
        reference_bjv = jax.nn.softmax(reference_logits_bjv / self.temperature)
        most_bj1 = jnp.max(reference_bjv, axis=-1, keepdims=True)
        return reference_bjv >= jnp.minimum(self.support_threshold, most_bj1)

    def logits(
        self, logits_bjv: Float[Array, "*b v"], support_bjv: Bool[Array, "*b v"]
    ) -> Float[Array, "*b v"]:
        """Logits divided by the temperature, and `MASKED` outside the support."""
        return jnp.where(support_bjv, logits_bjv / self.temperature, MASKED)
