"""The decoder as generation runs it: weights of single layers, and a cache of keys and values.

These are pure functions, to be called inside one jitted program. Linear maps that read the same
input are fused: with few rows, a step costs what reading weights and starting products cost.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models import blocks, rope
from models import lora as adapters
from models.attention import attend, causal_visibility
from models.blocks import KERNELS_TRAVEL, ROWS_TRAVEL, Layout, Weights
from models.config import DecoderConfig
from models.kernels import flash_decode
from models.lora import LoraConfig
from models.sharding import path_name, shard, shard_parameter
from models.transformer import positions

# For each layer {"k": [b, k, h, m], "v": [b, k, m, h]}: the slots of keys come last because a query
# is compared with all of them (up to twice as fast on a CPU as with the head's dimension last).
Cache = list[dict[str, Array]]

CHUNK = 512
"""Tokens of each prompt that are read at once."""


def unstack(
    params: Mapping[str, Any],
    config: DecoderConfig,
    *,
    dtype: Any = None,
    lora: Mapping[str, Any] | None = None,
    lora_config: LoraConfig | None = None,
) -> Weights:
    """Weights of single layers from the parameters that training scans over.

    To be jitted and called once per update: slices of stacked parameters taken inside a decoding
    loop would be copied at every step.

    Args:
      params: the decoder's parameter tree.
      config: the decoder's sizes.
      dtype: type of all weights but the scales of norms, and of the computation; None keeps it.
      lora: adapters to merge into the kernels.
      lora_config: sizes and scale of the adapters.

    Returns:
      {"embedder": {"embedding": [v, d]}, "layers": [one `blocks.fuse` per layer], "final_norm":
      {"scale": [d]}, "lm_head": {"kernel": [d, v]}}

    Raises:
      ValueError: one of `lora` and `lora_config` without the other.
    """
    if (lora is None) != (lora_config is None):
        raise ValueError("lora and lora_config: one is given without the other")
    if lora is not None and lora_config is not None:
        params = adapters.merge(params, lora, lora_config)

    def place(path: Sequence[Any], x: Array) -> Array:
        name = path_name(path)
        if name.endswith("/scale"):
            return x
        return shard_parameter(name, x if dtype is None else x.astype(dtype))

    layers = [
        blocks.fuse(config, jax.tree.map(lambda x, index=index: x[index], params["layers"]))
        for index in range(config.num_layers)
    ]
    # Tied embeddings are transposed here: a product with [v, d] takes twice as long on a CPU.
    head = params["lm_head"]["kernel"] if config.has_lm_head else params["embedder"]["embedding"].T
    weights: Weights = jax.tree_util.tree_map_with_path(
        place, {**params, "layers": layers, "lm_head": {"kernel": head}}
    )
    return weights


def num_slots(num_tokens: int, attention: str) -> int:
    """Slots that a cache for this many tokens must have, so that `decode_step` takes it."""
    if attention != "splash":
        return num_tokens
    return -(-num_tokens // flash_decode.SLOTS) * flash_decode.SLOTS


def prefill(
    weights: Weights,
    config: DecoderConfig,
    tokens_bp: Int[Array, "b p"],
    mask_bp: Bool[Array, "b p"],
    cache_length: int,
    *,
    attention: str = "reference",
) -> tuple[Float[Array, "b v"], Cache]:
    """Reads prompts into a new cache.

    Prompts of more than `CHUNK` tokens are read in chunks, one after the other, so that the
    temporaries are those of a chunk; results are the same but for rounding.

    Args:
      weights: output of `unstack`.
      config: the decoder's sizes.
      tokens_bp: left padded prompts.
      mask_bp: True for real tokens; the last column is real.
      cache_length: slots of the cache, m; prompts take the first p.
      attention: one of `models.attention.IMPLEMENTATIONS`.

    Returns:
      float32 logits of the token after the prompt, and the filled cache.

    Raises:
      ValueError: the cache is shorter than the prompts.
    """
    b, p = tokens_bp.shape
    if cache_length < p:
        raise ValueError(f"cache_length={cache_length}: must be at least the prompt's length {p}")
    length = min(p, CHUNK)
    m = -(-p // length) * length
    tokens_bm, mask_bm = (jnp.pad(x, ((0, 0), (m - p, 0))) for x in (tokens_bp, mask_bp))
    inputs = (tokens_bm, positions(mask_bm), mask_bm)
    k, h, dtype = config.num_kv_heads, config.head_dim, weights["embedder"]["embedding"].dtype
    empty = {"k": jnp.zeros((b, k, h, m), dtype), "v": jnp.zeros((b, k, m, h), dtype)}
    state = ([empty] * config.num_layers, jnp.zeros((b, m), jnp.bool_))
    read = functools.partial(_read_chunk, weights, config, attention)
    if m == length:
        (cache, _), x_bd = read(state, inputs)
    else:
        chunks = [x.reshape(b, -1, length).swapaxes(0, 1) for x in inputs]
        (cache, _), last_cbd = jax.lax.scan(read, state, chunks)
        x_bd = last_cbd[-1]
    # Room for new tokens comes afterwards: attention costs what the whole cache holds.
    cache = [{"k": entry["k"][..., m - p :], "v": entry["v"][:, :, m - p :]} for entry in cache]
    cache = grow(cache, cache_length)
    return _logits(weights, config, x_bd), cache


def grow(cache: Cache, length: int) -> Cache:
    """The cache with empty slots behind its own, so that it has `length` of them."""
    rest = (0, length - cache[0]["k"].shape[3])
    return [
        {
            "k": jnp.pad(entry["k"], ((0, 0), (0, 0), (0, 0), rest)),
            "v": jnp.pad(entry["v"], ((0, 0), (0, 0), rest, (0, 0))),
        }
        for entry in cache
    ]


def _read_chunk(
    weights: Weights,
    config: DecoderConfig,
    attention: str,
    state: tuple[Cache, Bool[Array, "b m"]],
    chunk: Sequence[Array],
) -> tuple[tuple[Cache, Bool[Array, "b m"]], Float[Array, "b d"]]:
    """Reads a chunk of left padded prompts, one step of the scan in `prefill`.

    Args:
      weights, config, attention: as in `prefill`.
      state: cache and mask of the tokens before, left padded too.
      chunk: tokens, positions and mask [b, s].

    Returns:
      The state with the chunk in its last slots, and the residual stream at the last token.
    """
    cache, seen_bm = state
    tokens_bs, positions_bs, mask_bs = chunk
    seen_bm = jnp.concatenate([seen_bm[:, mask_bs.shape[1] :], mask_bs], axis=1)
    window = config.sliding_window
    mask = causal_visibility(seen_bm, attention, window)

    def attend_prompt(q_bsnh: Array, entry: dict[str, Array]) -> Array:
        return attend(q_bsnh, *_views(entry), mask, implementation=attention, window=window)

    x_bsd, cache = _forward(
        weights, config, tokens_bs, positions_bs, cache, _shift_in, attend_prompt, KERNELS_TRAVEL
    )
    return (cache, seen_bm), x_bsd[:, -1]


def decode_step(
    weights: Weights,
    config: DecoderConfig,
    token_b: Int[Array, "b"],
    position_b: Int[Array, "b"],
    slot: Int[Array, ""],
    cache: Cache,
    key_mask_bm: Bool[Array, "b m"],
    *,
    attention: str = "reference",
) -> tuple[Float[Array, "b v"], Cache]:
    """Appends one token to every row.

    Args:
      weights: output of `unstack`.
      config: the decoder's sizes.
      token_b: one token for each row.
      position_b: number of real tokens before it in its row, padding not counted.
      slot: slot of the cache that its keys and values take, the same in all rows.
      cache: output of `prefill` or of the step before.
      key_mask_bm: True for the slots that hold real tokens, `slot` included.
      attention: one of `models.attention.IMPLEMENTATIONS`. With splash the kernel of
        `kernels.flash_decode` attends, otherwise the reference: the scores of one query are small.

    Returns:
      float32 logits of the next token, and the cache with the new keys and values.
    """
    if config.sliding_window is not None:
        key_mask_bm &= jnp.arange(key_mask_bm.shape[1]) > slot - config.sliding_window

    def attend_all(q_bsnh: Array, entry: dict[str, Array]) -> Array:
        if attention != "splash":
            return attend(q_bsnh, *_views(entry), key_mask_bm[:, None])
        newest = flash_decode.attend_newest(q_bsnh[:, 0], entry["k"], entry["v"], key_mask_bm)
        return newest[:, None]

    x_bsd, cache = _forward(
        weights,
        config,
        token_b[:, None],
        position_b[:, None],
        cache,
        functools.partial(_write, slot=slot),
        attend_all,
        ROWS_TRAVEL,
    )
    return _logits(weights, config, x_bsd[:, 0]), cache


def _forward(
    weights: Weights,
    config: DecoderConfig,
    tokens_bs: Int[Array, "b s"],
    positions_bs: Int[Array, "b s"],
    cache: Cache,
    append: Callable[[dict[str, Array], Array, Array], dict[str, Array]],
    attend_cache: Callable[[Array, dict[str, Array]], Array],
    layout: Layout,
) -> tuple[Float[Array, "b s d"], Cache]:
    """The residual stream of new tokens, and the cache with them.

    Args:
      weights, config, tokens_bs, positions_bs, cache: as in `prefill` and `decode_step`.
      append: (a layer's cache, keys, values [b, s, k, h]) to the cache with them.
      attend_cache: (queries [b, s, n, h], a layer's cache with the new keys and values in it) to
        the outputs of the heads [b, s, n, h].
      layout: where activations lie on a mesh.
    """
    angles = rope.angles(config, positions_bs)
    x_bsd = shard(weights["embedder"]["embedding"][tokens_bs], layout.rows, "s", layout.width)
    new_cache = []
    for p, entry in zip(weights["layers"], cache, strict=True):

        def attention(q: Array, k: Array, v: Array, entry: Any = entry) -> tuple[Array, Any]:
            entry = append(entry, k, v)
            return attend_cache(q, entry), entry

        x_bsd, entry = blocks.block(config, p, x_bsd, angles, attention, layout=layout)
        new_cache.append(entry)
    return x_bsd, new_cache


def _views(entry: dict[str, Array]) -> tuple[Float[Array, "b m k h"], Float[Array, "b m k h"]]:
    """A layer's keys and values in the order of `attend`; the products read them as they lie."""
    return entry["k"].transpose(0, 3, 1, 2), entry["v"].swapaxes(1, 2)


def _logits(
    weights: Weights, config: DecoderConfig, x_bd: Float[Array, "b d"]
) -> Float[Array, "b v"]:
    normed = blocks.rms_norm(x_bd, weights["final_norm"]["scale"], config.rms_norm_eps)
    return blocks.output_logits(weights, normed)


def _write(
    entry: dict[str, Array],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    *,
    slot: Int[Array, ""],
) -> dict[str, Array]:
    """A layer's cache with new keys and values from `slot` on."""
    new = _in_cache_order(k_bskh, v_bskh)
    update = jax.lax.dynamic_update_slice_in_dim
    return _sharded(
        update(entry["k"], new["k"], slot, axis=3), update(entry["v"], new["v"], slot, axis=2)
    )


def _shift_in(
    entry: dict[str, Array], k_bskh: Float[Array, "b s k h"], v_bskh: Float[Array, "b s k h"]
) -> dict[str, Array]:
    """A layer's cache with new keys and values in its last slots, and without its oldest ones."""
    s = k_bskh.shape[1]
    new = _in_cache_order(k_bskh, v_bskh)
    return _sharded(
        jnp.concatenate([entry["k"][..., s:], new["k"]], axis=3),
        jnp.concatenate([entry["v"][:, :, s:], new["v"]], axis=2),
    )


def _in_cache_order(
    k_bskh: Float[Array, "b s k h"], v_bskh: Float[Array, "b s k h"]
) -> dict[str, Array]:
    return {"k": k_bskh.transpose(0, 2, 3, 1), "v": v_bskh.swapaxes(1, 2)}


def _sharded(k_bkhm: Float[Array, "b k h m"], v_bkmh: Float[Array, "b k m h"]) -> dict[str, Array]:
    return {"k": shard(k_bkhm, "b", "k", "h", "m"), "v": shard(v_bkmh, "b", "k", "m", "h")}
