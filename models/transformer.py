"""The decoder as a Flax Linen network, for training: scanned layers, adapters, rematerialisation.

The modules hold parameters; what a layer computes is in `models.blocks`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from models import blocks, packing, rope
from models import lora as adapters
from models.attention import attend, causal_visibility
from models.config import DecoderConfig, parameter_shapes
from models.lora import LoraConfig
from models.precision import matmul_precision
from models.sharding import shard

# Values of each block that a backward pass keeps; it computes the others again.
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_REMAT_POLICIES)

# Where only the last positions are asked for, decoders of up to this many layers compute the last
# layer at those alone. That copies the other layers' weights and gains nothing with many layers.
_FEW_LAYERS = 4

# First values of parameters by the last name of their path, as in published Llama training.
_INITIALIZERS = {
    "embedding": nn.initializers.normal(0.02),
    "kernel": nn.initializers.normal(0.02),
    "bias": nn.initializers.zeros,
    "scale": nn.initializers.ones,
}


def positions(mask_bs: Bool[Array, "b s"]) -> Int[Array, "b s"]:
    """Position of each token: the number of real tokens before it; 0 for padding. int32."""
    counts = jnp.cumsum(mask_bs, axis=-1, dtype=jnp.int32)
    return jnp.where(mask_bs, counts - 1, 0)


class Parameters(nn.Module):
    """Parameters of a part of the decoder, as the nested dictionary that `models.blocks` takes.

    Adapters are in the collection `lora`: `init` makes them, and `apply` without the collection
    gives the linear maps without them.

    Attributes:
      shapes: nested dictionaries of shapes.
      param_dtype: dtype of new parameters; adapters are float32.
      lora: adapters of the linear maps, if any.
    """

    shapes: Mapping[str, Any]
    param_dtype: Any
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        p: dict[str, Any] = {}
        for name, entry in self.shapes.items():
            if isinstance(entry, Mapping):
                p[name] = Parameters(entry, self.param_dtype, self.lora, name=name)()
            else:
                p[name] = self.param(name, _INITIALIZERS[name], entry, self.param_dtype)
        return p | self._adapter(*self.shapes["kernel"]) if "kernel" in p else p

    def _adapter(self, fan_in: int, fan_out: int) -> dict[str, Array]:
        """Factors of this linear map's adapter, scale included; nothing if it has none."""
        has_adapter = self.has_variable("lora", "a")
        if self.lora is None or self.name not in self.lora.targets:
            if has_adapter:
                raise ValueError(f"there is an adapter for {self.name}, which is no LoRA target")
            return {}
        if not has_adapter and not self.is_initializing():
            return {}
        rank = self.lora.rank
        pair = {
            "a": self.variable("lora", "a", self._init_a, (fan_in, rank)).value,
            "b": self.variable("lora", "b", jnp.zeros, (rank, fan_out), jnp.float32).value,
        }
        return adapters.scaled(pair, self.lora)

    def _init_a(self, shape: tuple[int, int]) -> Array:
        return adapters.init_a(self.make_rng("params"), shape)


class Block(nn.Module):
    """One layer of the decoder with its parameters (`models.blocks.block`)."""

    config: DecoderConfig
    param_dtype: Any
    lora: LoraConfig | None
    attention_implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        angles: tuple[Float[Array, "b s c"], Float[Array, "b s c"]],
        mask: Bool[Array, "b *s s"],
        last: int | None = None,
        keys_cm: Int[Array, "c m"] | None = None,
    ) -> tuple[Float[Array, "b q d"], None]:
        """The residual stream at all positions or the last ones; None is what a scan collects.

        For blocks of `models.packing`, `keys_cm` says where the keys are that a block may see.
        """
        p = {
            name: Parameters(shapes, self.param_dtype, self.lora, name=name)()
            for name, shapes in _shapes(self.config)["layers"].items()
        }

        def attention(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            if keys_cm is not None:
                k, v = (x.reshape(-1, *x.shape[2:])[keys_cm] for x in (k, v))
            heads = attend(
                q,
                k,
                v,
                mask,
                implementation=self.attention_implementation,
                window=self.config.sliding_window,
            )
            return heads, None

        return blocks.block(self.config, p, x, angles, attention, last=last)


def _shapes(config: DecoderConfig) -> dict[str, Any]:
    """Shapes of all parameters as a tree; those of `layers` belong to one layer."""
    shapes = {
        path: shape[1:] if path.startswith("layers/") else shape
        for path, shape in parameter_shapes(config).items()
    }
    tree: dict[str, Any] = traverse_util.unflatten_dict(shapes, sep="/")
    return tree


class Decoder(nn.Module):
    """A decoder-only transformer of the Llama family.

    Attributes:
      config: sizes and constants.
      dtype: type of activations and matrix products; norms, softmax and logits are float32.
      param_dtype: type of new parameters; given ones are used in `dtype`, however they are stored.
      remat: what a backward pass computes again: "none"; "dots", all but matrix products; "full",
        every block from its input.
      lora: adapters to make and use, in the collection `lora`; None for none.
      attention_implementation: one of `models.attention.IMPLEMENTATIONS`. Generation takes its own
        choice (`models.decode`).
      precision: that of float32 products, one of `models.precision.PRECISIONS`.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    lora: LoraConfig | None = None
    attention_implementation: str = "reference"
    precision: str = "default"

    @property
    def gains_by_packing(self) -> bool:
        """Whether rows should be packed on a single device; small decoders gain too little.

        Every other number of blocks is another program, whose compilation must pay.
        """
        is_small = self.config.num_layers <= _FEW_LAYERS
        return not is_small and self.attention_implementation != "splash"

    def setup(self) -> None:
        config = self.config
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat}: must be one of {', '.join(REMAT)}")
        shapes = _shapes(config)
        self.embedder = Parameters(shapes["embedder"], self.param_dtype)
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
        self.final_norm = Parameters(shapes["final_norm"], self.param_dtype)
        if config.has_lm_head:
            self.lm_head = Parameters(shapes["lm_head"], self.param_dtype)

    def hidden(
        self,
        tokens_bs: Int[Array, "b s"],
        positions_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
        last: int | None = None,
        num_blocks: int = 0,
    ) -> Float[Array, "b q d"]:
        """The residual stream after the final norm, in `dtype`.

        Args:
          tokens_bs: ids; padding may hold any id of the vocabulary.
          positions_bs: position of each token, from `positions` or any other numbering.
          mask_bs: True for real tokens. A token sees the real ones up to itself, with a sliding
            window the newest of them by their place in the row: padding is at its ends.
          last: number of last positions to return; None returns all.
          num_blocks: `packing.count_blocks` of the rows, or more; then they are packed, if that is
            worth it. Positions must be those of `positions`. 0 does not pack.

        Raises:
          ValueError: rows are to be packed, which splash does not support.
        """
        with matmul_precision(self.precision):
            if packing.is_worth_it(num_blocks, *tokens_bs.shape):
                return self._packed(tokens_bs, mask_bs, last, num_blocks)
            return self._padded(tokens_bs, positions_bs, mask_bs, last)

    def _padded(
        self,
        tokens_bs: Int[Array, "b s"],
        positions_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
        last: int | None,
    ) -> Float[Array, "b q d"]:
        """As `hidden`, of rows that are not packed."""
        x = self._embed(tokens_bs)
        angles = rope.angles(self.config, positions_bs)
        window = self.config.sliding_window
        mask = causal_visibility(mask_bs, self.attention_implementation, window)
        if last is None or self.config.num_layers > _FEW_LAYERS:
            x, _ = self.layers(x, angles, mask)
            return self._normed(x if last is None else x[:, x.shape[1] - last :])
        # The same layers as `self.layers` scans over, taken apart.
        stacked = self.layers.variables
        block = Block(
            self.config, self.param_dtype, self.lora, self.attention_implementation, parent=None
        )

        def layer(x: Array, variables: Any, last: int | None) -> Array:
            applied: Any = block.apply(variables, x, angles, mask, last)
            return applied[0]

        if self.remat != "none":
            policy = _REMAT_POLICIES[self.remat]
            layer = jax.checkpoint(layer, prevent_cse=True, policy=policy, static_argnums=2)
        for index in range(self.config.num_layers):
            variables = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
            x = layer(x, variables, last if index + 1 == self.config.num_layers else None)
        return self._normed(x)

    def _embed(self, tokens_bs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        return shard(self.embedder()["embedding"][tokens_bs].astype(self.dtype), "b", "s", "-")

    def _packed(
        self,
        tokens_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
        last: int | None,
        num_blocks: int,
    ) -> Float[Array, "b q d"]:
        """As `hidden`, of packed rows; NaN if they take more blocks than that."""
        if self.attention_implementation == "splash":
            raise ValueError("attention=splash: rows cannot be packed")
        packed = packing.pack(tokens_bs, mask_bs, num_blocks, self.config.sliding_window)
        x = self._embed(packed.tokens_ct)
        angles = rope.angles(self.config, packed.positions_ct)
        x, _ = self.layers(x, angles, packed.visible_ctm, None, packed.keys_cm)
        place_bq = packed.place_bs if last is None else packed.place_bs[:, -last:]
        found_bqd = self._normed(x.reshape(-1, x.shape[-1])[place_bq])
        # NaN stops a run; wrong hidden states would not.
        return jnp.where(packed.is_enough, found_bqd, jnp.nan)

    def _normed(self, x: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        return blocks.rms_norm(x, self.final_norm()["scale"], self.config.rms_norm_eps)

    def logits(self, hidden_bsd: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """float32 logits from the output of `hidden`, at any choice of its positions."""
        with matmul_precision(self.precision):
            if self.config.has_lm_head:
                return blocks.output_logits({"lm_head": self.lm_head()}, hidden_bsd)
            return blocks.output_logits({"embedder": self.embedder()}, hidden_bsd)

    def __call__(
        self,
        tokens_bs: Int[Array, "b s"],
        positions_bs: Int[Array, "b s"],
        mask_bs: Bool[Array, "b s"],
    ) -> Float[Array, "b s v"]:
        """float32 logits of the token after each position."""
        return self.logits(self.hidden(tokens_bs, positions_bs, mask_bs))
