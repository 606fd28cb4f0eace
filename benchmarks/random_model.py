"""Random weights in the shape of a real decoder, for measuring speed where there are none."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from models.config import DecoderConfig
from models.convert import abstract_parameters

Sizes = tuple[int, int, int, int, int, int, int]
"""Vocabulary, width, MLP, layers, heads, key heads, size of a head."""


def decoder_config(sizes: Sizes, window: int) -> DecoderConfig:
    """A plain Llama of these sizes that reads up to `window` tokens."""
    vocabulary, width, mlp, layers, heads, kv_heads, head_dim = sizes
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


def num_parameters(config: DecoderConfig) -> int:
    """Of one network."""
    shapes = jax.tree.leaves(abstract_parameters(config, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in shapes)


def random_parameters(config: DecoderConfig, dtype: Any, *, stop_id: int, seed: int = 0) -> Any:
    """Normal with deviation 0.02, norms 1, and a stop token that is hardly ever drawn.

    Args:
      config: sizes.
      dtype: of all weights.
      stop_id: its logit is always 0, which top-k never lets through.
      seed: other weights for another number.
    """
    leaves, structure = jax.tree.flatten_with_path(abstract_parameters(config, dtype))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
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
