"""The decoder as generation runs it: weights of single layers, and a cache of keys and values.

Pure functions to be called inside one jitted program. Projections that read the same input are
fused, since with few rows a step costs what reading its weights and starting its products costs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models import lora as adapters
from models import rope
from models.attention import attend, causal_visibility
from models.config import DecoderConfig
from models.kernels import flash_decode
from models.lora import LoraConfig
from models.sharding import shard
from models.transformer import linear, output_logits, positions, rms_norm

# Nested dictionaries, see `unstack`.
Weights = dict[str, Any]

# For each layer {"k": [b, k, h, m], "v": [b, k, m, h]}: the slots of keys come last because a query
# is compared with all of them (up to twice as fast on a CPU as with the head's dimension last).
Cache = list[dict[str, Array]]


def unstack(
    params: Mapping[str, Any],
    config: DecoderConfig,
    *,
    dtype: Any = None,
    lora: Mapping[str, Any] | None = None,
    lora_config: LoraConfig | None = None,
) -> Weights:
    """Weights of single layers from the parameters that training scans over.

    Meant to be jitted and called once per update: slices of stacked parameters taken inside a
    decoding loop are copied at every step.

    Args:
      params: the decoder's parameter tree.
      config: its sizes.
      dtype: of all weights but the scales of norms, hence of the computation; None keeps it.
      lora: an adapter tree, merged into the kernels.
      lora_config: its sizes and scale.

    Returns:
      {"embedder": {"embedding": [v, d]}, "layers": [one per layer], "final_norm": {"scale": [d]},
      "lm_head": {"kernel": [d, v]}}, a layer being {"attention_norm": {"scale": [d]}, "qkv":
      {"kernel": [d, (n + 2k)h], perhaps "bias"}, "o": {"kernel": [nh, d]}, "mlp_norm": {"scale":
      [d]}, "gate_up": {"kernel": [d, 2, f]}, "down": {"kernel": [f, d]}}. In qkv the queries of a
      key head, the key and the value follow each other, head by head, so that splitting its last
      axis over devices splits heads.

    Raises:
      ValueError: one of `lora` and `lora_config` without the other.
    """
    if (lora is None) != (lora_config is None):
        raise ValueError("lora and lora_config: one is given without the other")
    if lora is not None and lora_config is not None:
        params = adapters.merge(params, lora, lora_config)

    def cast(x: Array, *axes: str) -> Array:
        return shard(x if dtype is None else x.astype(dtype), *axes)

    def layer(index: int) -> Weights:
        p = jax.tree.map(lambda x: x[index], params["layers"])
        attention, mlp = p["attention"], p["mlp"]
        gate_up = jnp.stack([mlp["gate"]["kernel"], mlp["up"]["kernel"]], axis=1)
        qkv = _join_heads(attention, config)
        return {
            "attention_norm": p["attention_norm"],
            "qkv": {name: cast(x, *("d", "k")[-x.ndim :]) for name, x in qkv.items()},
            "o": {"kernel": cast(attention["o"]["kernel"], "n", "d")},
            "mlp_norm": p["mlp_norm"],
            "gate_up": {"kernel": cast(gate_up, "d", "-", "f")},
            "down": {"kernel": cast(mlp["down"]["kernel"], "f", "d")},
        }

    embedding = params["embedder"]["embedding"]
    # Tied embeddings are transposed here: a product with [v, d] takes twice as long on a CPU.
    head = embedding.T if config.tie_word_embeddings else params["lm_head"]["kernel"]
    return {
        "embedder": {"embedding": cast(embedding, "v", "d")},
        "layers": [layer(index) for index in range(config.num_layers)],
        "final_norm": params["final_norm"],
        "lm_head": {"kernel": cast(head, "d", "v")},
    }


def num_slots(num_tokens: int, attention: str) -> int:
    """Slots of a cache for so many tokens, as `decode_step` takes it with this attention."""
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

    Args:
      weights: of `unstack`.
      config: the decoder's sizes.
      tokens_bp: left padded prompts.
      mask_bp: True for real tokens; the last column is real.
      cache_length: slots of the cache, m; prompts take the first p.
      attention: one of `models.attention.IMPLEMENTATIONS`.

    Returns:
      float32 logits of the token after the prompt, and the cache.

    Raises:
      ValueError: the cache is shorter than the prompts.
    """
    b, p = tokens_bp.shape
    if cache_length < p:
        raise ValueError(f"cache_length={cache_length}: must be at least the prompt's length {p}")
    k, h, dtype = config.num_kv_heads, config.head_dim, weights["embedder"]["embedding"].dtype
    empty = {"k": jnp.zeros((b, k, h, p), dtype), "v": jnp.zeros((b, k, p, h), dtype)}
    mask = causal_visibility(mask_bp, attention)

    def attend_prompt(q_bsnh: Array, entry: dict[str, Array]) -> Array:
        return attend(q_bsnh, *_views(entry), mask, implementation=attention)

    x_bpd, cache = _forward(
        weights,
        config,
        tokens_bp,
        positions(mask_bp),
        jnp.int32(0),
        [empty] * config.num_layers,
        attend_prompt,
        weights_stay=False,
    )
    # Room for new tokens comes afterwards: attention costs what the whole cache holds.
    rest = (0, cache_length - p)
    cache = [
        {
            "k": jnp.pad(entry["k"], ((0, 0), (0, 0), (0, 0), rest)),
            "v": jnp.pad(entry["v"], ((0, 0), (0, 0), rest, (0, 0))),
        }
        for entry in cache
    ]
    return _logits(weights, config, x_bpd[:, -1]), cache


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
      weights: of `unstack`.
      config: the decoder's sizes.
      token_b: the tokens.
      position_b: real tokens before each, padding not counted.
      slot: where keys and values are written, the same for all rows.
      cache: of `prefill` or the step before.
      key_mask_bm: True for the slots that hold real tokens, `slot` included.
      attention: one of `models.attention.IMPLEMENTATIONS`; splash is `kernels.flash_decode` here,
        the others are the reference: a single query has no scores worth saving.

    Returns:
      float32 logits of the token after, and the cache.
    """

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
        slot,
        cache,
        attend_all,
        weights_stay=True,
    )
    return _logits(weights, config, x_bsd[:, 0]), cache


def _forward(
    weights: Weights,
    config: DecoderConfig,
    tokens_bs: Int[Array, "b s"],
    positions_bs: Int[Array, "b s"],
    slot: Int[Array, ""],
    cache: Cache,
    attend_cache: Callable[[Array, dict[str, Array]], Array],
    *,
    weights_stay: bool,
) -> tuple[Float[Array, "b s d"], Cache]:
    """The residual stream of tokens that take the slots from `slot` on, and the cache with them.

    Args:
      weights, config, tokens_bs, positions_bs, cache: as above.
      slot: the first of them.
      attend_cache: (queries [b, s, n, h], a layer's cache with the new keys and values in it) to
        the heads' outputs [b, s, n, h].
      weights_stay: on a mesh, whether activations travel to the kernels' parts or the kernels are
        gathered where the rows are. What is smaller should travel: the few rows of a decoding
        step, but the kernels where prompts are read.
    """
    epsilon = config.rms_norm_eps
    rows, width = ("-", "d") if weights_stay else ("b", "-")
    cos, sin = rope.angles(config, positions_bs)
    x_bsd = shard(weights["embedder"]["embedding"][tokens_bs], rows, "s", width)
    new_cache = []
    for p, entry in zip(weights["layers"], cache, strict=True):
        normed = rms_norm(x_bsd, p["attention_norm"]["scale"], epsilon)
        qkv = shard(linear(p["qkv"], normed), "b", "s", "k")
        q, k, v = _split_heads(qkv, config)
        entry = _write(entry, rope.rotate(k, cos, sin), v, slot)
        heads = attend_cache(rope.rotate(q, cos, sin), entry)
        heads = shard(heads.reshape(*heads.shape[:2], -1), rows, "s", "n")
        x_bsd += shard(linear(p["o"], heads), rows, "s", width)
        normed = rms_norm(x_bsd, p["mlp_norm"]["scale"], epsilon)
        gate_up = jnp.einsum("bsd,dcf->bscf", normed, p["gate_up"]["kernel"])
        gate_up = shard(gate_up, "b", "s", "-", "f")
        inner = jax.nn.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
        inner = shard(inner, rows, "s", "f")
        x_bsd += shard(linear(p["down"], inner), rows, "s", width)
        new_cache.append(entry)
    return x_bsd, new_cache


def _views(entry: dict[str, Array]) -> tuple[Float[Array, "b m k h"], Float[Array, "b m k h"]]:
    """A layer's keys and values in the order of `attend`; the products read them as they lie."""
    return entry["k"].transpose(0, 3, 1, 2), entry["v"].swapaxes(1, 2)


def _logits(
    weights: Weights, config: DecoderConfig, x_bd: Float[Array, "b d"]
) -> Float[Array, "b v"]:
    normed = rms_norm(x_bd, weights["final_norm"]["scale"], config.rms_norm_eps)
    return output_logits(weights, normed)


def _join_heads(attention: Mapping[str, Any], config: DecoderConfig) -> dict[str, Array]:
    """Kernel and bias of q, k and v side by side for each key head: [.., k (n/k + 2) h]."""
    joined = {}
    for name in attention["q"]:
        lead = attention["q"][name].shape[:-1]
        parts = [
            attention[part][name].reshape(*lead, config.num_kv_heads, -1)
            for part in ("q", "k", "v")
        ]
        joined[name] = jnp.concatenate(parts, axis=-1).reshape(*lead, -1)
    return joined


def _split_heads(
    qkv_bso: Float[Array, "b s o"], config: DecoderConfig
) -> tuple[Float[Array, "b s n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Queries, keys and values out of the product with what `_join_heads` joined."""
    lead, group = qkv_bso.shape[:-1], config.num_heads // config.num_kv_heads
    heads = qkv_bso.reshape(*lead, config.num_kv_heads, group + 2, config.head_dim)
    q_bsnh = heads[..., :group, :].reshape(*lead, config.num_heads, config.head_dim)
    return q_bsnh, heads[..., group, :], heads[..., group + 1, :]


def _write(
    entry: dict[str, Array],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    slot: Int[Array, ""],
) -> dict[str, Array]:
    """A layer's cache with new keys and values from `slot` on."""
    keys = jax.lax.dynamic_update_slice_in_dim(
        entry["k"], k_bskh.transpose(0, 2, 3, 1), slot, axis=3
    )
    values = jax.lax.dynamic_update_slice_in_dim(entry["v"], v_bskh.swapaxes(1, 2), slot, axis=2)
    return {"k": shard(keys, "b", "k", "h", "m"), "v": shard(values, "b", "k", "m", "h")}
