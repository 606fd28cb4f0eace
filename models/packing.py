"""Rows without padding and repetition, for passes over many rows that begin alike.

A hidden state depends on the tokens up to its own alone. Rows that begin with the same tokens, such
as several actions behind one prompt, therefore share the hidden states of those tokens. Packing
computes each of them once and nothing for padding: what is left of the rows is cut into blocks of
`BLOCK` tokens of one row, and attention finds the keys of a row in the blocks of several.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

BLOCK = 32
"""Tokens of a block."""

# Packing is not worth its gathers where it saves less than this share of the tokens.
_LEAST_SAVED = 0.1


class Packing(NamedTuple):
    """Blocks of tokens that stand for rows.

    Attributes:
      tokens_ct: ids of c blocks of t tokens; what is behind the end of a row is arbitrary.
      positions_ct: their positions in their rows.
      keys_cm: for each token that a block may see, its place among all c * t.
      visible_ctm: True where a token sees it.
      place_bs: for each column of the rows, its token's place; arbitrary for padding.
      is_enough: False if the rows take more blocks than these, which then do not stand for them.
    """

    tokens_ct: Int[Array, "c t"]
    positions_ct: Int[Array, "c t"]
    keys_cm: Int[Array, "c m"]
    visible_ctm: Bool[Array, "c t m"]
    place_bs: Int[Array, "b s"]
    is_enough: Bool[Array, ""]


def pack(
    tokens_bs: Int[Array, "b s"],
    mask_bs: Bool[Array, "b s"],
    num_blocks: int,
    window: int | None = None,
) -> Packing:
    """Packs rows into blocks; may be traced.

    Args:
      tokens_bs: ids.
      mask_bs: True for the tokens of a row, which follow each other.
      num_blocks: at least `count_blocks` of these rows, or of any rows that these are some of.
      window: as in `models.attention.causal_mask`.
    """
    b, s = tokens_bs.shape
    # Behind longer rows, rows take the same number of blocks in whatever order they are given.
    order_b = jnp.argsort(-jnp.sum(mask_bs, axis=1))
    tokens_bs, mask_bs = jnp.asarray(tokens_bs)[order_b], jnp.asarray(mask_bs)[order_b]
    first_b = jnp.argmax(mask_bs, axis=1)
    slot_s = jnp.arange(s)
    # Rows begin in the first column.
    columns_bs = jnp.minimum(first_b[:, None] + slot_s, s - 1)
    tokens_bs = jnp.take_along_axis(tokens_bs, columns_bs, axis=1)
    common_bb, start_b, blocks_b = _shares(jnp, tokens_bs, jnp.sum(mask_bs, axis=1))
    end_b = jnp.cumsum(blocks_b)
    block_c = jnp.arange(num_blocks)
    row_c = jnp.minimum(jnp.sum(end_b <= block_c[:, None], axis=1), b - 1)
    offset_b = (end_b - blocks_b) * BLOCK - start_b  # from a token's slot to its place
    slot_ct = (block_c * BLOCK - offset_b[row_c])[:, None] + jnp.arange(BLOCK)
    slot_ct = jnp.clip(slot_ct, 0, s - 1)
    # A token belongs to the first row that has everything up to it.
    owner_bs = jnp.argmax(common_bb[:, :, None] > slot_s, axis=1)
    place_bs = jnp.clip(offset_b[owner_bs] + slot_s, 0, num_blocks * BLOCK - 1)
    visible_ctm = slot_s <= slot_ct[..., None]
    if window is not None:
        visible_ctm &= slot_s > slot_ct[..., None] - window
    place_of_column_bs = jnp.take_along_axis(
        place_bs, jnp.maximum(slot_s - first_b[:, None], 0), axis=1
    )
    return Packing(
        tokens_ct=tokens_bs[row_c[:, None], slot_ct],
        positions_ct=slot_ct,
        keys_cm=place_bs[row_c],
        visible_ctm=visible_ctm,
        place_bs=place_of_column_bs[jnp.argsort(order_b)],
        is_enough=end_b[-1] <= num_blocks,
    )


def count_blocks(tokens_bs: np.ndarray, mask_bs: np.ndarray) -> int:
    """Blocks that these rows take; on the host, because shapes depend on it."""
    rows = [tokens[mask] for tokens, mask in zip(tokens_bs, mask_bs, strict=True)]
    rows.sort(key=len, reverse=True)
    length_b = np.array([len(row) for row in rows])
    aligned_bs = np.zeros(tokens_bs.shape, tokens_bs.dtype)
    for index, row in enumerate(rows):
        aligned_bs[index, : len(row)] = row
    _, _, blocks_b = _shares(np, aligned_bs, length_b)
    return int(blocks_b.sum())


def bucket(num_blocks: int) -> int:
    """The number rounded up to one of few, which are at most a quarter apart: few compilations."""
    step = max(1 << (max(num_blocks, 1).bit_length() - 3), 1) if num_blocks > 4 else 1
    return -(-num_blocks // step) * step


def is_worth_it(num_blocks: int, b: int, s: int) -> bool:
    """True if so many blocks (0 for none) are clearly cheaper than b rows of s tokens."""
    return 0 < num_blocks * BLOCK <= (1 - _LEAST_SAVED) * b * s


def _shares(xp: Any, tokens_bs: Any, length_b: Any) -> tuple[Any, Any, Any]:
    """What rows have in common; with `xp` NumPy or jax.numpy.

    Returns:
      The number of tokens with which each two rows begin alike [b, b], with which each row begins
      like an earlier one [b], and the blocks of the rest [b].
    """
    b, s = tokens_bs.shape
    shorter_bb = xp.minimum(length_b[:, None], length_b[None])
    alike_bbs = (tokens_bs[:, None] == tokens_bs[None]) & (xp.arange(s) < shorter_bb[..., None])
    # The first place where two rows differ, found without an array of numbers [b, b, s].
    common_bb = xp.where(xp.all(alike_bbs, axis=-1), s, xp.argmin(alike_bbs, axis=-1))
    is_earlier_bb = xp.arange(b)[:, None] > xp.arange(b)
    start_b = xp.max(xp.where(is_earlier_bb, common_bb, 0), axis=1)
    return common_bb, start_b, -(-(length_b - start_b) // BLOCK)
