"""Grouped-query attention: the keys that a query sees, and the weighted sum of their values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models.kernels import splash

# Far below any score, yet finite, so that a product with zero is not NaN.
_MASKED = -1e9

IMPLEMENTATIONS = ("reference", "xla", "cudnn", "splash")
"""`reference` is in this module and `splash` is a kernel for TPUs; `xla` and `cudnn` belong to
`jax.nn.dot_product_attention`. cudnn (NVIDIA GPUs, 16 bits) and splash never hold the scores."""


def causal_visibility(
    mask_bs: Bool[Array, "b s"], implementation: str, window: int | None = None
) -> Bool[Array, "b s s"] | Bool[Array, "b s"]:
    """Mask of causal attention among real tokens, in the form that `attend` takes."""
    return mask_bs if implementation == "splash" else causal_mask(mask_bs, window)


def causal_mask(mask_bs: Bool[Array, "b s"], window: int | None = None) -> Bool[Array, "b s s"]:
    """Marks the keys (last axis) that each query sees: real tokens up to itself, and always itself.

    A query of padding sees itself alone, so that its softmax stays finite; no other query sees it.

    Args:
      mask_bs: True for real tokens, wherever the padding is.
      window: number of newest positions, its own included, that a query sees; None for all.
    """
    length = mask_bs.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
    if window is not None:
        causal = jnp.triu(causal, 1 - window)
    itself = jnp.eye(length, dtype=jnp.bool_)
    both_real = mask_bs[:, None, :] & mask_bs[:, :, None]
    return (causal & both_real) | itself


def attend(
    q_bsnh: Float[Array, "b s n h"],
    k_bmkh: Float[Array, "b m k h"],
    v_bmkh: Float[Array, "b m k h"],
    mask: Bool[Array, "b q m"] | Bool[Array, "b m"],
    *,
    implementation: str = "reference",
    window: int | None = None,
) -> Float[Array, "b s n h"]:
    """Softmax attention; scores and softmax in float32, products in the inputs' dtype.

    Args:
      q_bsnh: queries; consecutive heads share a key head where n > k.
      k_bmkh: keys.
      v_bmkh: values.
      mask: True where a query sees slot m, at least one slot per query; for splash, the output of
        `causal_visibility`. It may have more queries than s: the last s of them are meant.
      implementation: one of `IMPLEMENTATIONS`.
      window: as in `causal_visibility`. Only splash reads it; the other masks hold it.
    """
    if implementation == "splash":
        return splash.attend_causal(q_bsnh, k_bmkh, v_bmkh, mask, window=window)
    mask_bsm = mask[:, mask.shape[1] - q_bsnh.shape[1] :]
    if implementation != "reference":
        library: Any = jax.nn.dot_product_attention
        return library(
            q_bsnh, k_bmkh, v_bmkh, mask=mask_bsm[:, None], implementation=implementation
        )
    b, s, n, h = q_bsnh.shape
    m, k = k_bmkh.shape[1:3]
    # Queries that share a key head become rows of one matrix product; the weights are normalised
    # after it, over h columns in place of m. Both halve the time of the backward pass on a CPU.
    # A single query's weights are normalised before it: two kernels less in a layer on GPUs.
    q_bkth = (q_bsnh * h**-0.5).swapaxes(1, 2).reshape(b, k, n // k * s, h)
    scores = _product("bkth,bmkh->bktm", q_bkth, k_bmkh)
    scores_bnsm = jnp.where(mask_bsm[:, None], scores.reshape(b, n, s, m), _MASKED)
    highest = jax.lax.stop_gradient(jnp.max(scores_bnsm, axis=-1, keepdims=True))
    weights_bnsm = jnp.exp(scores_bnsm - highest)
    total = jnp.sum(weights_bnsm, axis=-1, keepdims=True)
    if s == 1:
        weights_bnsm, total = weights_bnsm / total, jnp.ones_like(total)
    weights_bktm = weights_bnsm.reshape(b, k, n // k * s, m).astype(v_bmkh.dtype)
    summed = _product("bktm,bmkh->bkth", weights_bktm, v_bmkh).reshape(b, n, s, h)
    return (summed / total).astype(q_bsnh.dtype).swapaxes(1, 2)


def _product(subscripts: str, one: Array, other: Array) -> Float[Array, "*x"]:
    """`jnp.einsum` summed in float32, with gradients from products of the factors' own type."""
    if one.dtype == jnp.float32:
        return _wide(subscripts, one, other)
    return _narrow(subscripts, one, other)


def _wide(subscripts: str, one: Array, other: Array) -> Array:
    return jnp.einsum(subscripts, one, other, preferred_element_type=jnp.float32)


# The gradient of a float32 result is float32. JAX multiplies it with a 16-bit factor in float32,
# which takes twice the time and memory on accelerators, or more.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow(subscripts: str, one: Array, other: Array) -> Array:
    return _wide(subscripts, one, other)


def _narrow_forward(subscripts: str, one: Array, other: Array) -> tuple[Array, tuple[Array, Array]]:
    return _wide(subscripts, one, other), (one, other)


def _narrow_backward(
    subscripts: str, factors: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    (one, other), dtype = factors, factors[0].dtype
    gradient = gradient.astype(dtype)
    inputs, _, result = subscripts.partition("->")
    of_one, of_other = inputs.split(",")
    return (
        _wide(f"{result},{of_other}->{of_one}", gradient, other).astype(dtype),
        _wide(f"{of_one},{result}->{of_other}", one, gradient).astype(dtype),
    )


_narrow.defvjp(_narrow_forward, _narrow_backward)
