"""The distributions pi and rho of sampling and losses: temperature, support and tilt of logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e9
"""Logit of a token outside the support; finite, because 0 * -inf would be NaN."""

TILT = "tilt"
"""Entry of a `etpo_jax.roles.Role` with the coefficients theta of its tilt."""

NUM_TILTS = 5
"""Number of statistics, and of coefficients, of a tilt."""


class TiltStatistics(NamedTuple):
    """Constants of `tilt_statistics`, in nats of log rho.

    Attributes:
      hinges, steps: places where the statistics begin to differ from 0.
      step_width: a step falls over so many nats. A sharp edge would turn a rounding difference
        between the sampling and the training program into one by the whole coefficient.
      lowest: all rarer tokens have the statistics of this log probability; masked tokens would
        have -1e9.
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

        The distribution is proportional to exp(l(w) / temperature + theta . phi(log rho(w))), an
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


def tilt_statistics(log_rho: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], ...]:
    """The five sufficient statistics of a tilt: functions of a token's own log rho, none above 0.

    They are 0 for likely tokens and negative for rare ones, so that a positive coefficient makes
    rare tokens rarer: min(0, log rho + 1) and min(0, log rho + 2), and steps from 0 to -1 at
    log rho = -2, -3 and -4. Below -12 they are constant.
    """
    of = TILT_STATISTICS
    log_rho = jnp.maximum(log_rho, of.lowest)
    hinges = [jnp.minimum(0.0, log_rho - edge) for edge in of.hinges]
    steps = [jnp.clip((log_rho - edge) / of.step_width, -1.0, 0.0) for edge in of.steps]
    return (*hinges, *steps)
