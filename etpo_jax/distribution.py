"""The distributions pi and rho of sampling and losses: temperature, support and tilt of logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e9
"""Logit of a token outside the support; finite, because 0 * -inf would be NaN."""

TILT = "tilt"
"""Entry of a `etpo_jax.roles.Role` with the coefficients theta of its tilt."""

NUM_TILTS = 10
"""Number of statistics, and of coefficients, of a tilt."""


class TiltStatistics(NamedTuple):
    """Constants of `tilt_statistics`, in nats.

    Attributes:
      hinges, steps: places where the statistics begin to differ from 0.
      step_width: a step falls over so many nats. A sharp edge would turn a rounding difference
        between the sampling and the training program into one by the whole coefficient.
      lowest: everything below has the statistics of this value; masked tokens would have -1e9.
    """

    hinges: tuple[float, ...] = (-1.0, -2.0)
    steps: tuple[float, ...] = (-2.0, -3.0, -4.0)
    step_width: float = 0.25
    lowest: float = -12.0


TILT_STATISTICS = TiltStatistics()


class Reference(NamedTuple):
    """The reference at some positions.

    Attributes:
      logits_bjv: logits of rho, at the temperature and within the support.
      support_bjv: True for the tokens in the support.
    """

    logits_bjv: Float[Array, "*b v"]
    support_bjv: Bool[Array, "*b v"]


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

    def reference(self, logits_bjv: Float[Array, "*b v"]) -> Reference:
        """The reference from its unprocessed logits."""
        support_bjv = self.support(logits_bjv)
        return Reference(self.logits(logits_bjv, support_bjv), support_bjv)

    def tilted(
        self,
        logits_bjv: Float[Array, "*b v"],
        reference: Reference,
        coefficients: Float[Array, "t"] | None,
    ) -> Float[Array, "*b v"]:
        """`logits` within the support of the reference, with a tilt if there is one.

        The distribution is proportional to exp(l(w) / temperature + theta . phi(w)), an
        exponential tilting of softmax(l / temperature) by the statistics phi of
        `tilt_statistics`.

        Args:
          logits_bjv: unprocessed logits l of a network.
          reference: the reference at the same positions.
          coefficients: theta; None and zeros tilt nothing.
        """
        processed_bjv = self.logits(logits_bjv, reference.support_bjv)
        if coefficients is None:
            return processed_bjv
        log_rho_bjv = jax.nn.log_softmax(reference.logits_bjv)
        # A sum of terms, so that no array [b, j, v, t] has to exist.
        for coefficient, statistic_bjv in zip(
            coefficients, tilt_statistics(log_rho_bjv), strict=True
        ):
            processed_bjv += coefficient * statistic_bjv
        return jnp.where(reference.support_bjv, processed_bjv, MASKED)


def tilt_statistics(log_rho_bv: Float[Array, "*b v"]) -> tuple[Float[Array, "*b v"], ...]:
    """The ten sufficient statistics of a tilt, none above 0.

    Five are functions of a token's log rho and five the same functions of log rho + H, where H is
    the entropy of rho at the position: its negative is the token's excess surprisal, which is large
    for a rare token where rho is sure, and small where rho spreads over many tokens (as in locally
    typical sampling, Meister et al. 2023). The functions of x are min(0, x + 1), min(0, x + 2) and
    steps from 0 to -1 at x = -2, -3 and -4: 0 for likely tokens and negative for rare ones, so that
    a positive coefficient makes rare tokens rarer. Below -12 they are constant.

    Args:
      log_rho_bv: log probabilities of the whole vocabulary, `MASKED` or so outside the support.
    """
    entropy_b1 = -jnp.sum(jnp.exp(log_rho_bv) * log_rho_bv, axis=-1, keepdims=True)
    return (*_functions(log_rho_bv), *_functions(log_rho_bv + entropy_b1))


def _functions(x: Float[Array, "*b v"]) -> list[Float[Array, "*b v"]]:
    of = TILT_STATISTICS
    x = jnp.maximum(x, of.lowest)
    hinges = [jnp.minimum(0.0, x - edge) for edge in of.hinges]
    steps = [jnp.clip((x - edge) / of.step_width, -1.0, 0.0) for edge in of.steps]
    return [*hinges, *steps]
