"""Random weights in the shape of a real decoder, for measuring speed without a checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from etpo_jax.algorithms.etpo import Etpo
from etpo_jax.config import Config
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.transformer import Decoder

SIZES = {
    # name: vocabulary, width, MLP, layers, heads, key heads, size of a head
    "tiny": (1024, 64, 176, 2, 4, 2, 16),
    "medium": (2048, 256, 688, 4, 8, 4, 32),
    "codellama_7b": (32016, 4096, 11008, 32, 32, 32, 128),
}
"""Shapes by name; tiny is the stand-in's."""


def decoder_config(size: str, window: int) -> DecoderConfig:
    """A plain Llama of one of `SIZES` that reads up to `window` tokens."""
    vocabulary, width, mlp, layers, heads, kv_heads, head_dim = SIZES[size]
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=window,
    )


def random_parameters(config: DecoderConfig, dtype: Any, *, stop_id: int) -> Any:
    """Normal weights with deviation 0.02 and norms of 1; jitted, they are made on the device.

    Args:
      config: sizes.
      dtype: type of all weights.
      stop_id: stop token; its logit is always 0, so that top-k hardly ever lets it through.
    """
    leaves, structure = jax.tree.flatten_with_path(abstract_parameters(config, dtype))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params: Any = jax.tree.unflatten(
        structure,
        [
            jnp.ones(leaf.shape, dtype)
            if "norm" in jax.tree_util.keystr(path)
            else jax.random.normal(key, leaf.shape, dtype) * 0.02
            for (path, leaf), key in zip(leaves, keys, strict=True)
        ],
    )
    if "lm_head" in params:
        kernel = params["lm_head"]["kernel"]
        params["lm_head"]["kernel"] = kernel.at[:, stop_id].set(0)
    else:
        embedding = params["embedder"]["embedding"]
        params["embedder"]["embedding"] = embedding.at[stop_id].set(0)
    return params


def build_decoder(config: Config, decoder: DecoderConfig) -> Decoder:
    """The architecture of all networks of a run."""
    return Decoder(
        decoder,
        dtype=jnp.dtype(config.model.compute_dtype),
        remat=config.model.rematerialized,
        precision=config.model.matmul_precision,
        lora=config.finetune.adapters,
        attention_implementation=config.model.attention,
    )


def build_learner(config: Config, decoder: DecoderConfig, base: Any, mesh: Mesh) -> Etpo:
    """The algorithm with its initial state; call it within `jax.set_mesh(mesh)`."""
    return Etpo(build_decoder(config, decoder), base, config, mesh)
