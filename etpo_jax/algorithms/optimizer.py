"""Optimisers, and the application of their steps to weights of low precision.

Learning rates are applied as traced scalars. Directions and optimiser states are computed in
float32 whatever the weights are stored in.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from etpo_jax.learning import LearningConfig


def build(
    config: LearningConfig, *, momentum_dtype: Any = jnp.float32
) -> optax.GradientTransformation:
    """The optimiser: gradient clipping, then AdamW or Lion; `step` applies what it returns.

    Args:
      config: names the optimiser and its settings.
      momentum_dtype: storage of the first moment; the second is float32.
    """
    name, settings = config.optimizer_settings
    moments = {"b1": settings["b1"], "b2": settings["b2"], "mu_dtype": momentum_dtype}
    if name == "lion":
        direction = optax.scale_by_lion(**moments)
    else:
        direction = optax.scale_by_adam(**moments, eps=settings["eps"])
    return optax.chain(
        optax.clip_by_global_norm(settings["clip_norm"]),
        direction,
        optax.add_decayed_weights(settings["weight_decay"]),
    )


def initial(transformation: optax.GradientTransformation, parameters: Any) -> Any:
    """The optimiser's state before the first step."""
    return transformation.init(_wide(parameters))


def step(
    transformation: optax.GradientTransformation,
    gradients: Any,
    optimizer_state: Any,
    parameters: Any,
    learning_rate: Float[Array, ""],
    key: Key[Array, ""],
) -> tuple[Any, Any]:
    """Moves parameters by one step of the optimiser.

    Args:
      transformation: the optimiser, made by `build`.
      gradients: gradients of the loss, a tree like `parameters`.
      optimizer_state: made by `initial` or by the step before.
      parameters: float32 leaves are moved exactly, bfloat16 ones by stochastic rounding.
      learning_rate: multiplies the optimiser's direction.
      key: random key of the rounding.

    Returns:
      The new parameters, in their dtypes, and the new optimiser state.
    """
    wide = _wide(parameters)
    direction, optimizer_state = transformation.update(_wide(gradients), optimizer_state, wide)
    moved = jax.tree.map(lambda old, way: old - learning_rate * way, wide, direction)
    leaves: list[Array] = jax.tree.leaves(moved)
    rounded = [
        _as_stored(leaf, old.dtype, jax.random.fold_in(key, index))
        for index, (leaf, old) in enumerate(zip(leaves, jax.tree.leaves(parameters), strict=True))
    ]
    return jax.tree.unflatten(jax.tree.structure(moved), rounded), optimizer_state


def stochastic_round(x: Float[Array, "*b"], key: Key[Array, ""]) -> Float[Array, "*b"]:
    """Rounds float32 to a neighbour in bfloat16, with the probabilities that keep the mean.

    A step far below the spacing of bfloat16 (2^-8 of the value) is lost by rounding to the nearest,
    but not on average here. Infinities and NaN are kept.
    """
    # The 16 bits that bfloat16 lacks: adding a random number below 2^16 carries with just the
    # probability that they stand for, also for negative values, whose magnitude grows.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(jnp.where(jnp.isfinite(x), cut, bits), jnp.float32)
    return rounded.astype(jnp.bfloat16)


def _as_stored(x: Array, dtype: Any, key: Array) -> Array:
    return stochastic_round(x, key) if dtype == jnp.bfloat16 else x.astype(dtype)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
