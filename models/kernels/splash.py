"""Causal attention for TPUs that never holds the scores: the library's Pallas kernel, on a mesh."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models import sharding

# The kernel takes lengths and sizes of a head that are multiples of it.
_LANES = 128
# Number of queries, and of keys, at a time; smaller where it would not divide the length.
_BLOCK = 512


def attend_causal(
    q_bsnh: Float[Array, "b s n h"],
    k_bmkh: Float[Array, "b m k h"],
    v_bmkh: Float[Array, "b m k h"],
    mask_bm: Bool[Array, "b m"],
    *,
    window: int | None = None,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """Causal attention block by block, equal to `attention.attend` at all real tokens.

    Lengths and heads that the kernel does not take are padded. Padding of the batch sees itself and
    padding before it: its outputs are finite, but differ from those of `attend`. On the mesh of
    `jax.set_mesh` each device attends for its rows and heads.

    Args:
      q_bsnh: queries of the last s of the m positions; consecutive heads share a key head.
      k_bmkh: keys.
      v_bmkh: values.
      mask_bm: True for real tokens.
      window: number of newest positions, its own included, that a query sees; None for all.
      interpret: whether to run the kernel as ordinary operations, on any device and slowly.
    """

    attend = functools.partial(_on_one_device, window=window, interpret=interpret)
    return sharding.map_attention(
        attend, q_bsnh, k_bmkh, v_bmkh, mask_bm, axes=("bsnh", "bmkh", "bmkh")
    )


def _on_one_device(
    q: Array, k: Array, v: Array, mask_bm: Array, *, window: int | None, interpret: bool
) -> Array:
    # Imported here, since it takes a second and is needed on TPUs only.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    s, n, h = q.shape[1:]
    m = k.shape[1]
    # Padding goes in front, so that the last query still belongs to the last key.
    q = _padded(q * h**-0.5, -s % _LANES)
    k, v = (_padded(x, -m % _LANES) for x in (k, v))
    mask_bm = jnp.pad(mask_bm, ((0, 0), (-m % _LANES, 0)))
    queries, keys = q.shape[1], k.shape[1]
    block_q, block_kv = _block(queries), _block(keys)
    visible: masks.Mask = masks.CausalMask((queries, keys), offset=keys - queries)
    if window is not None:
        visible = masks.LocalMask((queries, keys), (window - 1, 0), offset=keys - queries)
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([visible] * n),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        interpret=interpret,
    )
    # Real tokens see real tokens only, and padding sees padding only.
    kind_bm = mask_bm.astype(jnp.int32)
    kinds = kernels.SegmentIds(q=kind_bm[:, keys - queries :], kv=kind_bm)
    heads = jax.vmap(kernel)(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), kinds)
    return heads.swapaxes(1, 2)[:, queries - s :, :, :h]


def _padded(x_bsnh: Array, before: int) -> Array:
    """Adds zeros before the first position, and to each head up to a multiple of the lanes."""
    after = -x_bsnh.shape[-1] % _LANES
    return jnp.pad(x_bsnh, ((0, 0), (before, 0), (0, 0), (0, after)))


def _block(length: int) -> int:
    """The largest multiple of the lanes up to `_BLOCK` that divides a length."""
    return next(size for size in range(_BLOCK, 0, -_LANES) if length % size == 0)
