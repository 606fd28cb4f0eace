"""Sizes of a small decoder for tests, perturbed parameters, and the products of a program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from models.config import DecoderConfig


def small_decoder(**changes: Any) -> DecoderConfig:
    """Two layers of width 16 with grouped key heads, and any changes to that."""
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
    """The tree with normal noise of standard deviation `scale` added to every number."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), tree
    )


def products(jaxpr):
    """The matrix products of a traced program, in nested programs too."""
    found = [one for one in jaxpr.eqns if one.primitive.name == "dot_general"]
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found += products(inner)
    return found
