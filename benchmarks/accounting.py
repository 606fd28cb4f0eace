"""Operations and bytes of the measured programs, counted from the sizes of the model.

Counted are the matrix products with weights, 2 FLOP per weight and token, and what must cross the
memory bus at least once. Left out are attention's products of queries with keys, which are under
3 % of a gradient step at this project's lengths, and whatever a program recomputes or writes
without need: a share of a limit is therefore a share of necessary work.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from models.config import DecoderConfig
from models.convert import abstract_parameters

_COPIES_BOTH_WAYS = 2


def num_parameters(config: DecoderConfig) -> int:
    """Number of weights of one network."""
    return _count(_shapes(config))


def kernel_parameters(config: DecoderConfig) -> int:
    """Number of weights that every token is multiplied with: those of the layers."""
    return _count(_shapes(config)["layers"])


def head_parameters(config: DecoderConfig) -> int:
    """Number of weights of the output layer, which may be the embedding's."""
    return config.vocab_size * config.hidden_size


def copied_bytes(array_bytes: int) -> int:
    """Bytes that cross the memory bus when every element of an array is replaced: read, written."""
    return _COPIES_BOTH_WAYS * array_bytes


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """FLOP of a matrix product: one multiplication and one addition per term."""
    return 2 * rows * inner * columns


def forward_flops(config: DecoderConfig, tokens: int, logits: int) -> int:
    """FLOP of one network that reads `tokens` and gives logits at `logits` of them."""
    return 2 * (kernel_parameters(config) * tokens + head_parameters(config) * logits)


def gradient_step_flops(
    config: DecoderConfig, learning: Any, rows: int, prompt: int, action: int, next_prompt: int
) -> int:
    """FLOP of one gradient step of ETPO, without what is computed twice to save memory.

    Reference and target critic read every sequence once; policy and critic are trained on it, and a
    backward pass costs two forward passes. Next prompts are read by the target critic, and by
    policy and reference too unless the critic is regressed on paths.

    Args:
      config: sizes of every network.
      learning: settings of ETPO.
      rows: transitions.
      prompt, action, next_prompt: tokens of each transition.
    """
    sequences = forward_flops(config, rows * (prompt + action), rows * action)
    next_prompts = forward_flops(config, rows * next_prompt, rows)
    scored = 1 if learning.is_path else 2
    return (scored + 2 * 3) * sequences + (1 if learning.is_path else 3) * next_prompts


def weight_bytes(config: DecoderConfig, itemsize: int) -> int:
    """Bytes of weights that a step of decoding reads: of the embedding it reads single rows."""
    table = config.vocab_size * config.hidden_size if config.has_lm_head else 0
    return (num_parameters(config) - table) * itemsize


def cache_bytes(config: DecoderConfig, rows: int, tokens: float, itemsize: int) -> float:
    """Bytes of keys and values of `tokens` positions in every layer and row."""
    return 2 * config.num_layers * rows * tokens * config.num_kv_heads * config.head_dim * itemsize


def decode_step_bytes(
    config: DecoderConfig, rows: int, prompt: int, new: int, itemsize: int
) -> float:
    """Bytes that a step of decoding must read: all weights, and the filled part of the cache.

    The mean over the steps that follow the first of `new` tokens, which the prompt's logits give.
    """
    filled = prompt + new / 2
    return weight_bytes(config, itemsize) + cache_bytes(config, rows, filled, itemsize)


def _shapes(config: DecoderConfig) -> Any:
    return abstract_parameters(config, jnp.float32)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
