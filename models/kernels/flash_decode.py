"""Attention of one decoding step on TPUs: one pass over the filled part of a cache, in Pallas.

Blocks of slots before the first real token of a row and behind its newest are not read.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from models import sharding

SLOTS = 128
"""Number of slots that are read at a time; the length of a cache is a multiple of it."""

# Finite, as in `models.attention`.
_MASKED = -1e9


def attend_newest(
    q_bnh: Float[Array, "b n h"],
    k_bkhm: Float[Array, "b k h m"],
    v_bkmh: Float[Array, "b k m h"],
    mask_bm: Bool[Array, "b m"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n h"]:
    """Attention of one query in each row, equal to `attention.attend`.

    On the mesh of `jax.set_mesh` each device attends for its rows and heads.

    Args:
      q_bnh: queries; consecutive heads share a key head.
      k_bkhm, v_bkmh: cache of a layer.
      mask_bm: True for slots that are seen, at least one in each row.
      interpret: whether to run the kernel as ordinary operations, on any device and slowly.

    Raises:
      ValueError: the cache's length is no multiple of `SLOTS`.
    """
    if k_bkhm.shape[-1] % SLOTS:
        raise ValueError(f"{k_bkhm.shape[-1]} slots: must be a multiple of {SLOTS}")

    attend = functools.partial(_on_one_device, interpret=interpret)
    return sharding.map_attention(
        attend, q_bnh, k_bkhm, v_bkmh, mask_bm, axes=("bnh", "bkhm", "bkmh")
    )


def _on_one_device(q: Array, k: Array, v: Array, mask_bm: Array, *, interpret: bool) -> Array:
    # Imported here, since it takes a second and is needed on TPUs only.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    b, num_kv_heads, h, m = k.shape
    group = q.shape[1] // num_kv_heads
    blocks = m // SLOTS
    seen = mask_bm.reshape(b, blocks, SLOTS).any(axis=-1)
    first = jnp.argmax(seen, axis=-1).astype(jnp.int32)
    last = (blocks - 1 - jnp.argmax(seen[:, ::-1], axis=-1)).astype(jnp.int32)

    def block(row: Any, index: Any, first: Any, last: Any) -> Any:
        # Outside of the range the index repeats: a block that is in memory is not read again.
        return jnp.clip(index, first[row], last[row])

    whole = pl.BlockSpec((1, num_kv_heads, group, h), lambda row, *unused: (row, 0, 0, 0))
    attended = pl.pallas_call(
        functools.partial(_kernel, blocks=blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, blocks),
            in_specs=[
                whole,
                pl.BlockSpec((1, 1, SLOTS), lambda *at: (at[0], 0, block(*at))),
                pl.BlockSpec((1, num_kv_heads, h, SLOTS), lambda *at: (at[0], 0, 0, block(*at))),
                pl.BlockSpec((1, num_kv_heads, SLOTS, h), lambda *at: (at[0], 0, block(*at), 0)),
            ],
            out_specs=whole,
            scratch_shapes=[
                pltpu.VMEM((num_kv_heads, group, size), jnp.float32) for size in (1, 1, h)
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((b, num_kv_heads, group, h), q.dtype),
        interpret=interpret,
    )(
        first,
        last,
        (q * h**-0.5).reshape(b, num_kv_heads, group, h),
        mask_bm.astype(jnp.int32)[:, None],
        k,
        v,
    )
    return attended.reshape(q.shape)


def _kernel(*references: Any, blocks: int) -> None:
    """Adds a block to the running maximum, the sum of weights and the weighted sum of values."""
    first, last, q, mask, k, v, attended, highest, total, summed = references
    from jax.experimental import pallas as pl

    row, index = pl.program_id(0), pl.program_id(1)

    @pl.when(index == 0)
    def _() -> None:
        highest[...] = jnp.full_like(highest, _MASKED)
        total[...] = jnp.zeros_like(total)
        summed[...] = jnp.zeros_like(summed)

    @pl.when((first[row] <= index) & (index <= last[row]))
    def _() -> None:
        scores_kgm = jnp.einsum("kgh,khm->kgm", q[0], k[0], preferred_element_type=jnp.float32)
        scores_kgm = jnp.where(mask[...] != 0, scores_kgm, _MASKED)
        above_kg1 = jnp.maximum(highest[...], jnp.max(scores_kgm, axis=-1, keepdims=True))
        weights_kgm = jnp.exp(scores_kgm - above_kg1)
        kept_kg1 = jnp.exp(highest[...] - above_kg1)
        values_kgh = jnp.einsum(
            "kgm,kmh->kgh", weights_kgm.astype(v.dtype), v[0], preferred_element_type=jnp.float32
        )
        highest[...] = above_kg1
        total[...] = total[...] * kept_kg1 + jnp.sum(weights_kgm, axis=-1, keepdims=True)
        summed[...] = summed[...] * kept_kg1 + values_kgh

    @pl.when(index == blocks - 1)
    def _() -> None:
        attended[0] = (summed[...] / total[...]).astype(attended.dtype)
