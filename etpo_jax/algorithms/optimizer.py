"""Optimisers, and the application of their steps to weights of low precision.

Learning rates are applied as traced scalars. Directions and optimiser states are computed in
float32 whatever the weights are stored in.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from etpo_jax.config import Config
from etpo_jax.distribution import TILT
from models.sharding import path_name


def build(config: Config) -> optax.GradientTransformationExtraArgs:
    """The optimiser: gradient clipping, AdamW or Lion, and the learning rate.

    The coefficients of a tilt have a learning rate and an Adam of their own: they are neither
    clipped together with the weights nor decayed.

    Args:
      config: names the optimiser, its settings, and the storage of its first moment, which is that
        of the trained weights; the second moment is float32.
    """
    name, settings = config.learning.optimizer_settings
    moments = {"b1": settings["b1"], "b2": settings["b2"]}
    stored = {**moments, "mu_dtype": jnp.dtype(config.finetune.trained_dtype)}
    if name == "lion":
        direction = optax.scale_by_lion(**stored)
    else:
        direction = optax.scale_by_adam(**stored, eps=settings["eps"])
    of_weights = optax.chain(
        optax.clip_by_global_norm(settings["clip_norm"]),
        direction,
        optax.add_decayed_weights(settings["weight_decay"]),
        _scale_by_given_rate(),
    )
    if not (tilt_rate := config.finetune.tilt_learning_rate):
        return of_weights
    of_tilt = optax.chain(optax.scale_by_adam(**moments), optax.scale(tilt_rate))
    return optax.partition({"weights": of_weights, TILT: of_tilt}, _groups)


def _groups(parameters: Any) -> Any:
    """The group of every parameter, tilt or weights."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: TILT if path_name(path).rpartition("/")[-1] == TILT else "weights",
        parameters,
    )


def _scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies by the argument `learning_rate` of `update`, a traced scalar."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any) -> Any:
        del params
        return jax.tree.map(lambda leaf: learning_rate * leaf, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def initial(transformation: optax.GradientTransformation, parameters: Any) -> Any:
    """The optimiser's state before the first step."""
    return transformation.init(_wide(parameters))


def step(
    transformation: optax.GradientTransformationExtraArgs,
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
      learning_rate: multiplies the optimiser's direction; that of a tilt has its own.
      key: random key of the rounding.

    Returns:
      The new parameters, in their dtypes, and the new optimiser state.
    """
    wide = _wide(parameters)
    ways, optimizer_state = transformation.update(
        _wide(gradients), optimizer_state, wide, learning_rate=learning_rate
    )
    moved = jax.tree.map(jnp.subtract, wide, ways)
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
