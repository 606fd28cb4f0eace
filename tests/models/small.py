"""A decoder small enough for tests, in any shape that one asks for, and changed parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.config import DecoderConfig


def small_decoder(**changes: Any) -> DecoderConfig:
    """Two layers of width 16 with grouped key heads, but for what is named."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "max_position_embeddings": 64,
    }
    return DecoderConfig(**sizes | changes)


def perturbed(tree: Any, *, seed: int, scale: float) -> Any:
    """A tree of the same kind, each number moved by `scale` times a normal one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), tree
    )
