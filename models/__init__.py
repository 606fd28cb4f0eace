"""Llama-family decoder in Flax Linen, weights, LoRA, tokenizer and partition table."""

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
    """float32 logits of the token after each position, compiled; for tests and tools.

    Args:
      model: of `load`.
      params: of `load`.
      tokens_bs: ids.
      positions_bs: of `models.transformer.positions`.
      mask_bs: True for real tokens.
    """
    logits: Any = model.apply({"params": params}, tokens_bs, positions_bs, mask_bs)
    return logits
