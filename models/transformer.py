"""The Llama-family decoder: pure functions on plain dictionaries, and the Linen modules over them.

Training runs the modules, which scan over stacked layers; decoding runs the same functions on the
dictionaries of single layers. A projection's dictionary holds `kernel` [in, out], perhaps `bias`
[out], and perhaps the factors `a` [in, r] and `b` [r, out] of an adapter, scale included.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models import lora as adapters
from models import rope
from models.attention import attend, causal_visibility
from models.config import DecoderConfig
from models.lora import LoraConfig
from models.sharding import shard

# What a backward pass keeps of each block; the rest is computed again.
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_REMAT_POLICIES)

# Up to so many layers, where only the last positions are asked for, the last layer is computed at
# those alone. It takes a copy of the other layers' weights, and with many layers gains nothing.
_FEW_LAYERS = 4

# Standard deviation of new kernels and embeddings, as in published Llama training.
_INIT = nn.initializers.normal(0.02)


def positions(mask_bs: Bool[Array, "b s"]) -> Int[Array, "b s"]:
    """Position of each token: the number of real tokens before it; 0 for padding. int32."""
    counts = jnp.cumsum(mask_bs, axis=-1, dtype=jnp.int32)
    return jnp.where(mask_bs, counts - 1, 0)


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


def queries_of(
    config: DecoderConfig,
    p: Mapping[str, Mapping[str, Array]],
    x: Float[Array, "*b d"],
    cos: Float[Array, "*b c"],
    sin: Float[Array, "*b c"],
) -> Float[Array, "*b n h"]:
    """Queries of one layer, rotated to their positions.

    Args:
      config: head counts and sizes.
      p: `layer["attention"]`.
      x: normalised residual stream.
      cos, sin: of `rope.angles` at the positions of x.
    """
    q = linear(p["q"], x).reshape(*x.shape[:-1], config.num_heads, config.head_dim)
    return rope.rotate(q, cos, sin)


def keys_values_of(
    config: DecoderConfig,
    p: Mapping[str, Mapping[str, Array]],
    x: Float[Array, "*b d"],
    cos: Float[Array, "*b c"],
    sin: Float[Array, "*b c"],
) -> tuple[Float[Array, "*b k h"], Float[Array, "*b k h"]]:
    """Keys, rotated to their positions, and values of one layer; arguments as `queries_of`."""
    lead = x.shape[:-1]
    k = linear(p["k"], x).reshape(*lead, config.num_kv_heads, config.head_dim)
    v = linear(p["v"], x).reshape(*lead, config.num_kv_heads, config.head_dim)
    return rope.rotate(k, cos, sin), v


def gated_mlp(
    p: Mapping[str, Mapping[str, Array]], x: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """SwiGLU: down(silu(gate x) * up x); `p` is `layer["mlp"]`."""
    inner = jax.nn.silu(linear(p["gate"], x)) * linear(p["up"], x)
    return linear(p["down"], shard(inner, *_axes(inner, "f")))


def output_logits(params: Mapping[str, Any], hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
    """float32 logits of what follows the final norm.

    Args:
      params: the whole tree; the embedding is the output layer where there is no `lm_head`.
      hidden: of `Decoder.hidden`.
    """
    if "lm_head" in params:
        kernel = params["lm_head"]["kernel"].astype(hidden.dtype)
        rows = hidden.reshape(-1, hidden.shape[-1])  # as in `linear`
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32)
        logits = logits.reshape(*hidden.shape[:-1], -1)
    else:
        embedding = params["embedder"]["embedding"].astype(hidden.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, embedding, preferred_element_type=jnp.float32)
    return shard(logits, *_axes(logits, "v"))


def _axes(x: Array, last: str) -> tuple[str, ...]:
    """Axis letters of an activation: the batch first, `last` at the end, whole in between."""
    return ("b", *"-" * (x.ndim - 2), last)


class Embedding(nn.Module):
    """The table of token vectors."""

    config: DecoderConfig
    param_dtype: Any

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        shape = (self.config.vocab_size, self.config.hidden_size)
        return {"embedding": self.param("embedding", _INIT, shape, self.param_dtype)}


class Norm(nn.Module):
    """Root mean square norm with a learnt scale."""

    epsilon: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        return rms_norm(x, scale, self.epsilon)


class Projection(nn.Module):
    """The parameters of one linear map, with its adapter if it has one, as `linear` takes them.

    The adapter is in the collection `lora`. It is made by `init`; `apply` without the collection is
    the map without the adapter.
    """

    fan_in: int
    fan_out: int
    use_bias: bool
    param_dtype: Any
    lora: LoraConfig | None

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        shape = (self.fan_in, self.fan_out)
        p = {"kernel": self.param("kernel", _INIT, shape, self.param_dtype)}
        if self.use_bias:
            p["bias"] = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        has_adapter = self.has_variable("lora", "a")
        if self.lora is None or self.name not in self.lora.targets:
            if has_adapter:
                raise ValueError(f"there is an adapter for {self.name}, which is no LoRA target")
        elif has_adapter or self.is_initializing():
            rank = self.lora.rank
            pair = {
                "a": self.variable("lora", "a", self._init_a, (self.fan_in, rank)).value,
                "b": self.variable("lora", "b", jnp.zeros, (rank, self.fan_out), jnp.float32).value,
            }
            p |= adapters.scaled(pair, self.lora)
        return p

    def _init_a(self, shape: tuple[int, int]) -> Array:
        return adapters.init_a(self.make_rng("params"), shape)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key heads."""

    config: DecoderConfig
    param_dtype: Any
    lora: LoraConfig | None
    attention_implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        cos: Float[Array, "b s c"],
        sin: Float[Array, "b s c"],
        mask: Bool[Array, "b *s s"],
        last: int | None = None,
    ) -> Float[Array, "b q d"]:
        """Of the last positions only, if so many are named; they see the keys of all."""
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        p = {
            name: Projection(fan_in, fan_out, use_bias, self.param_dtype, self.lora, name=name)()
            for name, fan_in, fan_out, use_bias in (
                ("q", config.hidden_size, queries, config.attention_bias),
                ("k", config.hidden_size, keys, config.attention_bias),
                ("v", config.hidden_size, keys, config.attention_bias),
                ("o", queries, config.hidden_size, False),
            )
        }
        asked = slice(None) if last is None else slice(x.shape[1] - last, None)
        q = queries_of(config, p, x[:, asked], cos[:, asked], sin[:, asked])
        k, v = keys_values_of(config, p, x, cos, sin)
        q = shard(q, "b", "s", "n", "h")
        k, v = shard(k, "b", "m", "k", "h"), shard(v, "b", "m", "k", "h")
        heads = attend(q, k, v, mask, implementation=self.attention_implementation)
        return linear(p["o"], heads.reshape(*heads.shape[:-2], queries))


class GatedMlp(nn.Module):
    """The SwiGLU feed-forward network."""

    config: DecoderConfig
    param_dtype: Any
    lora: LoraConfig | None

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        d, f = self.config.hidden_size, self.config.intermediate_size
        p = {
            name: Projection(fan_in, fan_out, False, self.param_dtype, self.lora, name=name)()
            for name, fan_in, fan_out in (("gate", d, f), ("up", d, f), ("down", f, d))
        }
        return gated_mlp(p, x)


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and around the residual stream."""

    config: DecoderConfig
    param_dtype: Any
    lora: LoraConfig | None
    attention_implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        cos: Float[Array, "b s c"],
        sin: Float[Array, "b s c"],
        mask: Bool[Array, "b *s s"],
        last: int | None = None,
    ) -> tuple[Float[Array, "b q d"], None]:
        """All positions, or the last so many."""
        parts = (self.config, self.param_dtype, self.lora)
        norm = (self.config.rms_norm_eps, self.param_dtype)
        normed = Norm(*norm, name="attention_norm")(x)
        attended = Attention(*parts, self.attention_implementation, name="attention")(
            normed, cos, sin, mask, last
        )
        x = attended + (x if last is None else x[:, x.shape[1] - last :])
        x = x + GatedMlp(*parts, name="mlp")(Norm(*norm, name="mlp_norm")(x))
        return shard(x, "b", "s", "-"), None  # the pair that a scan over layers wants


class Decoder(nn.Module):
    """The whole network.

    Attributes:
      config: sizes and constants.
      dtype: of activations and matrix products; norms, softmax and logits are float32.
      param_dtype: of new parameters; given ones are used in `dtype` whatever they are stored in.
      remat: what is computed again in a backward pass: "none"; "dots", all but matrix products;
        "full", every block from its input.
      lora: makes and uses the collection `lora`.
      attention_implementation: of `models.attention.IMPLEMENTATIONS`; generation has its own.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    lora: LoraConfig | None = None
    attention_implementation: str = "reference"

    def setup(self) -> None:
        config = self.config
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat}: must be one of {', '.join(REMAT)}")
        self.embedder = Embedding(config, self.param_dtype)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=_REMAT_POLICIES[self.remat])
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
        )(config, self.param_dtype, self.lora, self.attention_implementation)
        self.final_norm = Norm(config.rms_norm_eps, self.param_dtype)
        if not config.tie_word_embeddings:
            sizes = (config.hidden_size, config.vocab_size)
            self.lm_head = Projection(*sizes, False, self.param_dtype, None)

    def hidden(
        self,
        tokens_bs: Int[Array, "b s"],
        positions_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
        last: int | None = None,
    ) -> Float[Array, "b q d"]:
        """The residual stream after the final norm, in `dtype`.

        Args:
          tokens_bs: ids; those of padding may be anything in range.
          positions_bs: of `positions`, or any other numbering.
          mask_bs: True for real tokens. A token sees the real ones up to itself.
          last: how many of the last positions are returned; None is all.
        """
        embedding = self.embedder()["embedding"]
        x = shard(embedding[tokens_bs].astype(self.dtype), "b", "s", "-")
        cos, sin = rope.angles(self.config, positions_bs)
        mask = causal_visibility(mask_bs, self.attention_implementation)
        if last is None or self.config.num_layers > _FEW_LAYERS:
            x, _ = self.layers(x, cos, sin, mask)
            return self.final_norm(x if last is None else x[:, x.shape[1] - last :])
        # The same layers as `self.layers` scans over, taken apart.
        stacked = self.layers.variables
        block = Block(
            self.config, self.param_dtype, self.lora, self.attention_implementation, parent=None
        )

        def layer(x: Array, variables: Any, last: int | None) -> Array:
            applied: Any = block.apply(variables, x, cos, sin, mask, last)
            return applied[0]

        if self.remat != "none":
            policy = _REMAT_POLICIES[self.remat]
            layer = jax.checkpoint(layer, prevent_cse=True, policy=policy, static_argnums=2)
        for index in range(self.config.num_layers):
            variables = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
            x = layer(x, variables, last if index + 1 == self.config.num_layers else None)
        return self.final_norm(x)

    def logits(self, hidden_bsd: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """float32 logits of `hidden`'s output, or of any choice of its positions."""
        if self.config.tie_word_embeddings:
            return output_logits({"embedder": self.embedder()}, hidden_bsd)
        return output_logits({"lm_head": self.lm_head()}, hidden_bsd)

    def __call__(
        self,
        tokens_bs: Int[Array, "b s"],
        positions_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
    ) -> Float[Array, "b s v"]:
        """float32 logits of the token after each position."""
        return self.logits(self.hidden(tokens_bs, positions_bs, mask_bs))
