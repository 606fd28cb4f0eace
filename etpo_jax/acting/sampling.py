"""Sampling one token from logits: temperature, support mask, top-k, top-p, and the draw itself.

Nothing is sorted. Top-k and top-p keep the tokens above a threshold, which a search over its bits
finds, whatever k is: by bisection with about 15 sums over the vocabulary on CPUs, where XLA's top_k
of 50 out of 1,024 takes over twenty times as long, and in 10 passes elsewhere. The draw inverts the
cumulative distribution at one uniform number; Gumbel noise needs one number per token and takes
twenty times as long.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from etpo_jax.config import SamplingConfig
from etpo_jax.distribution import Distribution

# Bits of a threshold that one pass settles: it compares every weight with 2^bits - 1 candidates.
_BITS_OF_A_PASS = 3


class Truncation(NamedTuple):
    """Parts that make the sampled distribution out of logits; None turns a part off.

    The values are traced: only turning a part on or off compiles another program.

    Attributes:
      temperature: divisor of the logits.
      support_threshold: keeps the tokens with at least this probability under the reference at the
        same temperature, and its most likely token.
      top_k: of those, keeps the k most likely tokens.
      top_p: of those, keeps the fewest most likely tokens that hold this share of the probability.
      flattening: divisor of the logits of the tokens in the support, after tilt and support, which
        it does not change.
    """

    temperature: Float[Array, ""]
    support_threshold: Float[Array, ""] | None
    top_k: Float[Array, ""] | None
    top_p: Float[Array, ""] | None
    flattening: Float[Array, ""] | None = None

    @classmethod
    def of(
        cls, config: SamplingConfig, temperature: float | None = None, flattening: float = 1.0
    ) -> "Truncation":
        """The truncation of these settings; `temperature` overrides the configured temperature."""
        return cls(
            temperature=jnp.float32(config.temperature if temperature is None else temperature),
            support_threshold=_unless(config.support_threshold, 0.0),
            top_k=_unless(config.top_k, 0),
            top_p=_unless(config.top_p, 1.0),
            flattening=_unless(flattening, 1.0),
        )


def _unless(value: float, off: float) -> Float[Array, ""] | None:
    return None if value == off else jnp.float32(value)


def weights(
    logits_bv: Float[Array, "b v"],
    truncation: Truncation,
    reference_logits_bv: Float[Array, "b v"] | None = None,
    tilt: Float[Array, "t"] | None = None,
) -> Float[Array, "b v"]:
    """Unnormalised probabilities of the sampled distribution; the largest weight is 1.

    Tokens as likely as the last one that top-k or top-p keeps are kept as well.

    Args:
      logits_bv: unprocessed logits of the policy.
      truncation: temperature, support mask, top-k and top-p.
      reference_logits_bv: unprocessed logits of the reference; required for a support mask or a
        tilt.
      tilt: coefficients of `Distribution.tilted`; None for no tilt.

    Raises:
      ValueError: if there is a support mask or a tilt and no logits of the reference.
    """
    threshold = truncation.support_threshold
    if threshold is None and tilt is None:
        scaled_bv = logits_bv / truncation.temperature
    elif reference_logits_bv is None:
        raise ValueError("support_threshold and tilt: need the logits of the reference")
    else:
        distribution = Distribution(
            truncation.temperature, jnp.float32(0) if threshold is None else threshold
        )
        reference = distribution.reference(reference_logits_bv)
        scaled_bv = distribution.tilted(logits_bv, reference, tilt)
    scaled_bv -= jnp.max(scaled_bv, axis=-1, keepdims=True)
    if truncation.flattening is not None:
        scaled_bv /= truncation.flattening
    weights_bv = jnp.exp(scaled_bv)
    if truncation.top_k is not None:
        one_bv = jnp.ones_like(weights_bv)
        weights_bv = _keep_largest(weights_bv, one_bv, truncation.top_k)
    if truncation.top_p is not None:
        mass_b1 = truncation.top_p * jnp.sum(weights_bv, axis=-1, keepdims=True)
        weights_bv = _keep_largest(weights_bv, weights_bv, mass_b1)
    return weights_bv


def _keep_largest(
    weights_bv: Float[Array, "b v"],
    amount_bv: Float[Array, "b v"],
    wanted: Float[Array, "b 1"] | Float[Array, ""],
) -> Float[Array, "b v"]:
    """Sets the smallest weights to 0 while the amounts of the others still sum to `wanted`.

    Weights lie in [0, 1]. Floats that are not negative have the order of their bits read as
    integers, so a search over integers below 2^30 finds the threshold exactly.
    """
    # A loop that ends early is fastest on a CPU. On accelerators its condition would stall every
    # turn, on GPUs by a trip to the host.
    bits_b1 = jax.lax.platform_dependent(
        weights_bv, amount_bv, wanted, cpu=_bisect, default=_search_in_passes
    )
    threshold_b1 = jax.lax.bitcast_convert_type(bits_b1, jnp.float32)
    return jnp.where(weights_bv >= threshold_b1, weights_bv, 0)


def _bisect(
    weights_bv: Float[Array, "b v"],
    amount_bv: Float[Array, "b v"],
    wanted: Float[Array, "b 1"] | Float[Array, ""],
) -> Int[Array, "b 1"]:
    """Bits of a threshold that keeps enough and no more than needed, after at most 30 sums."""

    def is_open(bounds: tuple[Int[Array, "b 1"], Int[Array, "b 1"]]) -> Bool[Array, ""]:
        lower_b1, upper_b1 = bounds
        return jnp.any(lower_b1 < upper_b1)

    def halve(
        bounds: tuple[Int[Array, "b 1"], Int[Array, "b 1"]],
    ) -> tuple[Int[Array, "b 1"], Int[Array, "b 1"]]:
        """Halves the interval that holds the bits of the highest threshold that keeps enough."""
        lower_b1, upper_b1 = bounds
        middle_b1 = (lower_b1 + upper_b1 + 1) // 2
        sum_b1 = _sums_above(weights_bv, amount_bv, middle_b1)
        lower_b1 = jnp.where(sum_b1 >= wanted, middle_b1, lower_b1)
        upper_b1 = jnp.where(sum_b1 > wanted, upper_b1, middle_b1 - 1)
        # A sum of exactly `wanted` ends the search: higher thresholds keep the same or too few.
        return lower_b1, jnp.maximum(lower_b1, upper_b1)

    zero_b1 = jnp.zeros((weights_bv.shape[0], 1), jnp.int32)
    one_b1 = jax.lax.bitcast_convert_type(jnp.ones_like(zero_b1, jnp.float32), jnp.int32)
    lower_b1, _ = jax.lax.while_loop(is_open, halve, (zero_b1, one_b1))
    return lower_b1


def _search_in_passes(
    weights_bv: Float[Array, "b v"],
    amount_bv: Float[Array, "b v"],
    wanted: Float[Array, "b 1"] | Float[Array, ""],
) -> Int[Array, "b 1"]:
    """Bits of the highest threshold that keeps enough, found in a fixed number of passes."""
    lower_b1 = jnp.zeros((weights_bv.shape[0], 1), jnp.int32)
    for shift in reversed(range(0, 30, _BITS_OF_A_PASS)):
        bits_bc = lower_b1 + (jnp.arange(1, 1 << _BITS_OF_A_PASS, dtype=jnp.int32) << shift)
        is_enough_bc = _sums_above(weights_bv, amount_bv, bits_bc) >= wanted
        lower_b1 += jnp.sum(is_enough_bc, axis=-1, keepdims=True, dtype=jnp.int32) << shift
    return lower_b1


def _sums_above(
    weights_bv: Float[Array, "b v"], amount_bv: Float[Array, "b v"], bits_bc: Int[Array, "b c"]
) -> Float[Array, "b c"]:
    """Sums of the amounts whose weights reach each of the thresholds with these bits."""
    threshold_bc1 = jax.lax.bitcast_convert_type(bits_bc, jnp.float32)[..., None]
    kept_bcv = weights_bv[:, None] >= threshold_bc1
    return jnp.sum(jnp.where(kept_bcv, amount_bv[:, None], 0), axis=-1)


def uniform(keys_b: Key[Array, "b"], step: Int[Array, ""]) -> Float[Array, "b"]:
    """One uniform number in (0, 1) per row, drawn with the row's key folded with the step.

    The numbers are multiples of 2^-24. Zero is left out, because it would choose the first token
    however small its weight.
    """
    numbers_b = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys_b)
    return numbers_b + 2.0**-24


def draw(
    weights_bv: Float[Array, "b v"], uniform_b: Float[Array, "b"]
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """The token at a quantile of each row's distribution, and the log of its probability.

    Args:
      weights_bv: unnormalised probabilities, from `weights`.
      uniform_b: quantiles, from `uniform`.

    Returns:
      int32 ids, whose weight is never 0, and float32 log probabilities in nats.
    """
    b, v = weights_bv.shape
    # Search in two levels, blocks and tokens of one block: the cost of a cumulative sum grows
    # faster than its length on some backends.
    width = 1 << ((v - 1).bit_length() + 1) // 2
    blocks_bcw = jnp.pad(weights_bv, ((0, 0), (0, -v % width))).reshape(b, -1, width)
    sums_bc = jnp.sum(blocks_bcw, axis=-1)
    total_b = jnp.sum(sums_bc, axis=-1)
    block_b, rest_b = _invert(sums_bc, uniform_b * total_b)
    inside_bw = jnp.take_along_axis(blocks_bcw, block_b[:, None, None], axis=1)[:, 0]
    index_b, _ = _invert(inside_bw, rest_b)
    weight_b = jnp.take_along_axis(inside_bw, index_b[:, None], axis=1)[:, 0]
    return block_b * width + index_b, jnp.log(weight_b / total_b)


def _invert(
    weights_bw: Float[Array, "b w"], target_b: Float[Array, "b"]
) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
    """First index whose cumulative weight exceeds the target, and the target's distance into it."""
    cumulative_bw = jnp.cumsum(weights_bw, axis=-1)
    index_w = jnp.arange(weights_bw.shape[-1], dtype=jnp.int32)
    # Rounding may put the target at the very end, and sums in another order differ: require a
    # weight above zero.
    is_beyond_bw = (cumulative_bw > target_b[:, None]) & (weights_bw > 0)
    first_b = jnp.min(jnp.where(is_beyond_bw, index_w, index_w.size), axis=-1)
    last_b = jnp.max(jnp.where(weights_bw > 0, index_w, 0), axis=-1)
    index_b = jnp.minimum(first_b, last_b)
    here_b = jnp.take_along_axis(cumulative_bw - weights_bw, index_b[:, None], axis=1)[:, 0]
    return index_b, target_b - here_b
