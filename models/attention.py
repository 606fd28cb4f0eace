"""Grouped-query attention: which keys a query sees, and the weighted sum of their values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Finite, so that no product with zero makes NaN; far below any score.
_MASKED = -1e9


def causal_mask(mask_bs: Bool[Array, "b s"]) -> Bool[Array, "b s s"]:
    """Which key (last axis) each query sees: real tokens up to itself, and always itself.

    Args:
      mask_bs: True for real tokens, wherever the padding is. A padded query sees nothing but
        itself, so that its softmax stays finite; nobody else sees it.
    """
    length = mask_bs.shape[-1]
    causal = jnp.tril(jnp.ones((length, length), jnp.bool_))
    itself = jnp.eye(length, dtype=jnp.bool_)
    both_real = mask_bs[:, None, :] & mask_bs[:, :, None]
    return (causal & both_real) | itself


def attend(
    q_bsnh: Float[Array, "b s n h"],
    k_bkmh: Float[Array, "b k m h"],
    v_bkmh: Float[Array, "b k m h"],
    mask_bsm: Bool[Array, "b #s m"],
) -> Float[Array, "b s n h"]:
    """Softmax attention; scores and softmax in float32, products in the inputs' dtype.

    Args:
      q_bsnh: queries; consecutive heads share a key head where n > k.
      k_bkmh: keys with the head before the slot, which is also the layout of a decoding cache.
      v_bkmh: values.
      mask_bsm: True where query s sees slot m; at least one slot per query.
    """
    b, s, n, h = q_bsnh.shape
    k = k_bkmh.shape[1]
    q_bskgh = (q_bsnh * h**-0.5).reshape(b, s, k, n // k, h)
    scores = jnp.einsum("bskgh,bkmh->bksgm", q_bskgh, k_bkmh, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_bsm[:, None, :, None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bkmh.dtype)
    out_bskgh = jnp.einsum("bksgm,bkmh->bskgh", weights, v_bkmh)
    return out_bskgh.reshape(b, s, n, h)
