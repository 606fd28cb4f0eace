"""Language models of the Llama family in Flax Linen: read, apply and write them.

Adapters, text and sharding are in `models.lora`, `models.tokenizer` and `models.sharding`.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from models.convert import load, save
from models.errors import ModelError
from models.transformer import Decoder

__all__ = ["Decoder", "ModelError", "apply", "load", "save"]


@functools.partial(jax.jit, static_argnums=0)
def apply(
    model: Decoder,
    params: dict,
    tokens_bs: Int[Array, "b s"],
    positions_bs: Int[Array, "b s"],
    mask_bs: Bool[Array, "b s"],
) -> Float[Array, "b s v"]:
    """float32 logits of the token after each position; compiled once per shape.

    Args:
      model: the network that `load` returns.
      params: its parameters, from `load` or of the same tree.
      tokens_bs: ids; padding may hold any id of the vocabulary.
      positions_bs: position of each token, usually from `models.transformer.positions`.
      mask_bs: True for real tokens. A token sees the real ones up to itself.
    """
    logits: Any = model.apply({"params": params}, tokens_bs, positions_bs, mask_bs)
    return logits
