"""Directions of the gradient steps; learning rates are applied by the update as traced scalars."""

import optax

from etpo_jax.config import OptimizerConfig


def build(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW or Lion with rate 1: its updates are to be scaled by -learning_rate."""
    if config.optimizer == "lion":
        direction = optax.scale_by_lion(b1=config.adam_b1, b2=config.adam_b2)
    else:
        direction = optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        direction,
        optax.add_decayed_weights(config.weight_decay),
    )
