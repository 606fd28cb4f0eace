"""The computation of one layer of the decoder, stated once for training and for decoding.

A layer's parameters are a nested dictionary by the paths of `models.config.PARAMETERS`. A linear
map is {"kernel": [in, out]}, perhaps with a "bias" [out], and perhaps with the factors "a" [in, r]
and "b" [r, out] of an adapter, scale included. Decoding fuses maps that read the same input.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import rope
from models.config import DecoderConfig
from models.sharding import shard

# Nested dictionaries of arrays.
Weights = dict[str, Any]


class Layout(NamedTuple):
    """Placement on a mesh of the activations between the linear maps of a layer.

    Attributes:
      rows: axis letter of their rows, as in `models.sharding`.
      width: axis letter of the residual stream's width.
    """

    rows: str
    width: str


# The smaller side should travel between devices: kernels to the many rows of training and of
# prompts, but the few rows of a decoding step to the parts of the kernels.
KERNELS_TRAVEL = Layout("b", "-")
ROWS_TRAVEL = Layout("-", "d")


def block(
    config: DecoderConfig,
    p: Mapping[str, Any],
    x: Float[Array, "b s d"],
    angles: tuple[Float[Array, "b s c"], Float[Array, "b s c"]],
    attention: Callable[[Array, Array, Array], tuple[Array, Any]],
    *,
    layout: Layout = KERNELS_TRAVEL,
    last: int | None = None,
) -> tuple[Float[Array, "b q d"], Any]:
    """One layer: attention and MLP, each after a norm and added to the residual stream.

    Args:
      config: sizes and constants.
      p: the layer's parameters, with maps fused or not.
      x: residual stream.
      angles: cosine and sine of the positions of x, by `rope.angles`.
      attention: (queries [b, q, n, h], keys [b, s, k, h], values [b, s, k, h]) to the outputs of
        the heads [b, q, n, h] and anything to keep, such as a layer's cache.
      layout: where activations lie on a mesh.
      last: number of last positions to compute; they see the keys of all. None computes all.

    Returns:
      The residual stream after the layer at those positions, and what `attention` kept.
    """
    rows, width = layout
    normed = rms_norm(x, p["attention_norm"]["scale"], config.rms_norm_eps)
    q, k, v = _queries_keys_values(config, p["attention"], normed, last)
    if config.query_key_norm:
        q = rms_norm(q, p["attention"]["q_norm"]["scale"], config.rms_norm_eps)
        k = rms_norm(k, p["attention"]["k_norm"]["scale"], config.rms_norm_eps)
    cos, sin = angles
    q, k = rope.rotate(q, _last(cos, last), _last(sin, last)), rope.rotate(k, cos, sin)
    heads, kept = attention(q, k, v)
    heads = shard(heads.reshape(*heads.shape[:2], -1), rows, "s", "n")
    x = _last(x, last) + shard(linear(p["attention"]["o"], heads), rows, "s", width)
    normed = rms_norm(x, p["mlp_norm"]["scale"], config.rms_norm_eps)
    inner = shard(_gated(p["mlp"], normed), rows, "s", "f")
    return x + shard(linear(p["mlp"]["down"], inner), rows, "s", width), kept


def rms_norm(
    x: Float[Array, "*b d"], scale: Float[Array, "d"], epsilon: float
) -> Float[Array, "*b d"]:
    """Divides by the root mean square over d, computed in float32; the dtype of x is kept."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + epsilon) * scale).astype(x.dtype)


def linear(p: Mapping[str, Array], x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """x W, plus the adapter and the bias where there are any, in the dtype of x."""
    # With one leading axis the gradient of W is a plain matrix product. With two the CPU backend
    # first copies the transposed activations, which doubles the cost of the backward pass.
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ p["kernel"].astype(x.dtype)
    if "a" in p:
        y += (rows @ p["a"].astype(x.dtype)) @ p["b"].astype(x.dtype)
    if "bias" in p:
        y += p["bias"].astype(x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def output_logits(params: Mapping[str, Any], hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
    """float32 logits from the residual stream after the final norm.

    Args:
      params: holds `lm_head`, or else `embedder`, whose embedding is then the output layer.
      hidden: output of `Decoder.hidden`, at any choice of positions.
    """
    if "lm_head" in params:
        kernel = params["lm_head"]["kernel"].astype(hidden.dtype)
        rows = hidden.reshape(-1, hidden.shape[-1])  # as in `linear`
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        logits = logits.reshape(*hidden.shape[:-1], -1)
    else:
        embedding = params["embedder"]["embedding"].astype(hidden.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32)
    return shard(logits, "b", *"-" * (logits.ndim - 2), "v")


def fuse(config: DecoderConfig, p: Mapping[str, Any]) -> Weights:
    """A layer whose maps with the same input are one: a decoding step starts fewer products.

    Args:
      config: head counts.
      p: a layer without adapters.

    Returns:
      The layer with "qkv" {"kernel": [d, (n + 2k)h], perhaps "bias"} in the place of "q", "k" and
      "v", and "gate_up" {"kernel": [d, 2, f]} in that of "gate" and "up". In qkv the queries of a
      key head, the key and the value follow each other, head by head, so that splitting its last
      axis over devices splits heads.
    """

    def joined(name: str) -> Array:
        parts = [
            maps[name].reshape(*maps[name].shape[:-1], config.num_kv_heads, -1) for maps in qkv
        ]
        together = jnp.concatenate(parts, axis=-1)
        return together.reshape(*together.shape[:-2], -1)

    attention, mlp = dict(p["attention"]), dict(p["mlp"])
    qkv = [attention.pop(name) for name in ("q", "k", "v")]
    gate_up = jnp.stack([mlp.pop(name)["kernel"] for name in ("gate", "up")], axis=1)
    return {
        **p,
        "attention": {"qkv": {name: joined(name) for name in qkv[0]}, **attention},
        "mlp": {"gate_up": {"kernel": gate_up}, **mlp},
    }


def _queries_keys_values(
    config: DecoderConfig, p: Mapping[str, Any], x: Float[Array, "b s d"], last: int | None
) -> tuple[Float[Array, "b q n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Queries of the last positions, keys and values of all, not yet rotated."""
    n, k, h = config.num_heads, config.num_kv_heads, config.head_dim
    if "qkv" in p:
        joined = shard(linear(p["qkv"], x), "b", "s", "k")
        heads = joined.reshape(*joined.shape[:2], k, n // k + 2, h)
        q = heads[..., : n // k, :].reshape(*joined.shape[:2], n, h)
        return _last(q, last), heads[..., n // k, :], heads[..., n // k + 1, :]
    q = linear(p["q"], _last(x, last)).reshape(x.shape[0], -1, n, h)
    keys, values = (linear(p[name], x).reshape(*x.shape[:2], k, h) for name in ("k", "v"))
    return (
        shard(q, "b", "s", "n", "h"),
        shard(keys, "b", "m", "k", "h"),
        shard(values, "b", "m", "k", "h"),
    )


def _gated(p: Mapping[str, Any], x: Float[Array, "b s d"]) -> Float[Array, "b s f"]:
    """Inner activations of SwiGLU: silu(gate x) * up x."""
    if "gate_up" not in p:
        return jax.nn.silu(linear(p["gate"], x)) * linear(p["up"], x)
    both = jnp.einsum("bsd,dcf->bscf", x, p["gate_up"]["kernel"])
    both = shard(both, "b", "s", "-", "f")
    return jax.nn.silu(both[:, :, 0]) * both[:, :, 1]


def _last(x: Array, last: int | None) -> Array:
    """The last positions of [b, s, ..], or all for None."""
    return x if last is None else x[:, x.shape[1] - last :]
