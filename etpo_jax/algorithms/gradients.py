"""Parts of a gradient step that all algorithms share: microbatches, guards and placement."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import optimizer
from models import sharding

Metrics = dict[str, Float[Array, ""]]


class NonFiniteError(Exception):
    """A loss or a gradient is NaN or infinite, and the step of its network was not taken."""


class Share(NamedTuple):
    """Shares of a minibatch's actions and tokens that a microbatch holds; 1 for the whole."""

    actions: Array | float
    tokens: Array | float


class Backward(NamedTuple):
    """Losses of a minibatch, and functions that compute their gradients.

    Attributes:
      metrics: scalars of the minibatch; those of a microbatch are weighted with its share.
      gradients: one function for each trained network, in the order of their steps. Its argument
        is the `Step` before, after which the gradient is computed, or None for the first.
      kept: small arrays, from which the second network's gradient can be computed in a later pass,
        see `in_microbatches`.
      direct: the part of the second network's gradient that this pass computes anyway, which the
        later one leaves out; a tree like the network's with None for what it has no part in.
    """

    metrics: Metrics
    gradients: tuple[Callable[[Any], Any], ...]
    kept: Any = ()
    direct: Any = None


def in_microbatches(
    backward: Callable[[Any, Share], Backward],
    data: Any,
    mask_bj: Bool[Array, "b j"],
    trained: tuple[Any, ...],
    size: int,
    mesh: Mesh,
    *,
    second: Callable[[Any, Any], Any] | None = None,
    direct: Any = None,
) -> Backward:
    """The backward pass of a minibatch, with its gradients accumulated over microbatches.

    Args:
      backward: makes the losses of a part of the minibatch, weighted with the part's share.
      data: tree of arrays [b, ...], such as a batch.
      mask_bj: True for the action tokens of the minibatch.
      trained: the networks, in the order of `Backward.gradients`.
      size: transitions of a microbatch; 0 is the whole minibatch.
      mesh: devices over which every microbatch is spread.
      second: makes the second network's gradient of a part from what `Backward.kept` holds of it.
        Then the sum of its gradients is made when it is asked for, in a second pass over the
        microbatches, and never exists beside that of the first network. None sums them together.
      direct: a tree with the shapes of `Backward.direct`.

    Raises:
      ValueError: microbatches of this size do not divide the minibatch.
    """
    whole = mask_bj.shape[0]
    if size in (0, whole):
        return backward(data, Share(1.0, 1.0))
    if whole % size:
        raise ValueError(f"microbatches of {size} do not divide a minibatch of {whole}")
    count = whole // size
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(size, count, *leaf.shape[1:]).swapaxes(0, 1), (data, mask_bj)
    )
    num_tokens = jnp.sum(mask_bj)
    is_apart = second is not None and bool(jax.tree.leaves(trained[1]))

    def add(sums: Any, part: Any) -> tuple[Any, tuple[Metrics, Any]]:
        microbatch, part_mask_bj = _as_microbatch(part)
        found = backward(microbatch, Share(1 / count, jnp.sum(part_mask_bj) / num_tokens))
        if is_apart:
            gradients = (found.gradients[0](None), found.direct)
        else:
            gradients = tuple(make_gradient(None) for make_gradient in found.gradients)
        return _added(sums, gradients, mesh), (found.metrics, found.kept)

    summed = (trained[0], direct) if is_apart else trained
    sums, (metrics, kept) = jax.lax.scan(add, _zeros(summed, mesh), parts)
    metrics = {name: jnp.sum(values) for name, values in metrics.items()}
    if second is None or not is_apart:
        return Backward(metrics, tuple(functools.partial(_given, gradient) for gradient in sums))

    def second_gradient(step: Step | None) -> Any:
        total = _summed_after(step, second, (parts, kept), trained[1], mesh)
        return plus(total, sums[1])

    return Backward(metrics, (functools.partial(_given, sums[0]), second_gradient))


def _summed_after(
    step: "Step | None", second: Callable[[Any, Any], Any], parts: Any, network: Any, mesh: Mesh
) -> Any:
    """The sum of a network's gradients over microbatches, in a pass that follows a step."""

    def add(total: Any, part: Any) -> tuple[Any, None]:
        microbatch, _ = _as_microbatch(part[0])
        return _added(total, second(microbatch, part[1]), mesh), None

    return computed_after(
        step,
        lambda scanned: jax.lax.scan(add, _zeros(network, mesh), scanned)[0],
        parts,
        lambda: _zeros(network, mesh),
        mesh,
    )


def pulled_back(
    step: "Step | None", back: Callable[[Any], Any], cotangent: Any, network: Any, mesh: Mesh
) -> Any:
    """A network's gradient, computed by `computed_after`.

    Args:
      step: the step before.
      back: the network's backward pass, as `jax.vjp` returns it.
      cotangent: its argument.
      network: a tree with the shapes and dtypes of the gradient.
      mesh: devices of the program.
    """
    return computed_after(
        step,
        lambda cotangent: constrain(back(cotangent)[0], mesh),
        cotangent,
        lambda: constrain(jax.tree.map(jnp.zeros_like, network), mesh),
        mesh,
    )


def computed_after(
    step: "Step | None",
    make: Callable[[Any], Any],
    inputs: Any,
    zeros: Callable[[], Any],
    mesh: Mesh,
) -> Any:
    """Computes `make(inputs)` after another network's step; zeros if that step was not taken.

    The order keeps the gradient of that step and the new arrays from being alive at the same time.
    For TPUs a barrier is enough; it never gives zeros, and a branch would take more memory. XLA for
    GPUs fills the arrays of all gradients at the start of the program, whatever barriers there are,
    but not those of a branch.

    Args:
      step: None computes at once.
      make: computes a tree of arrays.
      inputs: its argument.
      zeros: makes zeros of the same shapes and dtypes.
      mesh: devices of the program.
    """
    if step is None:
        return make(inputs)
    if mesh.devices.flat[0].platform == "tpu":
        return make(jax.lax.optimization_barrier((inputs, step.parameters))[0])
    known = (step.is_taken, step.parameters, step.optimizer_state)
    is_taken, *_ = jax.lax.optimization_barrier(known)
    return jax.lax.cond(is_taken, lambda: make(inputs), zeros)


def plus(gradient: Any, direct: Any) -> Any:
    """The sum of two gradients, of which the second may have None for what it has no part in."""
    if direct is None:
        return gradient
    return jax.tree.map(lambda a, b: a if b is None else a + b, gradient, direct)


def without_layers(tree: Any) -> Any:
    """The tree with None in place of the decoder's layers, which hold nearly all parameters."""

    def keep(path: Any, leaf: Any) -> Any:
        return None if "layers" in sharding.path_name(path).split("/") else leaf

    return jax.tree.map_with_path(keep, tree)


def with_layers(tree: Any, whole: Any) -> Any:
    """A tree of `without_layers` with the layers of another tree of the same kind."""
    return jax.tree.map(lambda leaf, other: leaf if other is None else other, whole, tree)


def _as_microbatch(part: Any) -> Any:
    """A part of the scanned arrays as the data of a microbatch, spread over the devices."""
    return jax.tree.map(
        lambda node: node.as_microbatch() if isinstance(node, Batch) else node,
        jax.tree.map(over_devices, part),
        is_leaf=lambda node: isinstance(node, Batch),
    )


def _added(sums: Any, gradients: Any, mesh: Mesh) -> Any:
    return constrain(jax.tree.map(jnp.add, sums, gradients), mesh)


def _zeros(tree: Any, mesh: Mesh) -> Any:
    return constrain(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), tree), mesh)


def _given(gradient: Any, step: Any) -> Any:
    """Returns a gradient that was computed before."""
    del step
    return gradient


def all_finite(metrics: Metrics) -> Bool[Array, ""]:
    """True if no scalar is NaN or infinite."""
    return jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))


class Step(NamedTuple):
    """One network after a gradient step.

    Attributes:
      parameters, optimizer_state: new ones, or the old ones where the step was not taken.
      norm: global norm of the gradient, before it is clipped.
      is_taken: False if the gradient or anything before it was not finite.
    """

    parameters: Any
    optimizer_state: Any
    norm: Float[Array, ""]
    is_taken: Bool[Array, ""]


def guarded_step(
    transformation: optax.GradientTransformation,
    gradients: Any,
    parameters: Any,
    optimizer_state: Any,
    *,
    learning_rate: Float[Array, ""],
    key: Key[Array, ""],
    is_finite: Bool[Array, ""],
) -> Step:
    """One step of one network, taken only if everything is finite.

    Args:
      transformation: the optimiser, see `etpo_jax.algorithms.optimizer.build`.
      gradients: tree like `parameters`.
      parameters, optimizer_state: the network and its optimiser before the step.
      learning_rate: multiplies the direction of the optimiser.
      key: random key of stochastic rounding.
      is_finite: False if a step before this one was not taken.
    """
    norm = optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients))
    is_taken = is_finite & jnp.isfinite(norm)
    proposed = optimizer.step(
        transformation, gradients, optimizer_state, parameters, learning_rate, key
    )
    kept_parameters, kept_state = where(is_taken, proposed, (parameters, optimizer_state))
    return Step(kept_parameters, kept_state, norm, is_taken)


def next_state_values(
    batch: Batch, value: Callable[[Array, Array, int], Float[Array, "b"]]
) -> Float[Array, "b"]:
    """Values of the next states, 0 where the episode ended; gradients are stopped.

    Args:
      batch: the transitions.
      value: makes values [b] of prompts (tokens [b, p], mask [b, p], blocks to pack them into); it
        is evaluated only if an episode of the batch goes on.
    """
    value_b = jax.lax.cond(
        jnp.any(batch.continues_b > 0),
        lambda batch: value(
            batch.next_prompt_tokens_bp, batch.next_prompt_mask_bp, batch.blocks.next_prompt
        ),
        lambda batch: jnp.zeros_like(batch.reward_b),
        batch,
    )
    return jax.lax.stop_gradient(jnp.where(batch.continues_b > 0, value_b, 0.0))


def check_finite(metrics: dict[str, np.ndarray], step: int) -> None:
    """Checks the metrics of a gradient step that is done.

    Raises:
      NonFiniteError: naming what was not finite, if the step was not taken.
    """
    if metrics["is_finite"]:
        return
    broken = [name for name, value in metrics.items() if not np.isfinite(value)]
    raise NonFiniteError(
        f"gradient step {step} gave a non-finite {', '.join(broken)}; checkpoints hold the state "
        "before it. Try a lower learning rate, a larger --beta or --dtype=float32"
    )


def constrain(tree: Any, mesh: Mesh) -> Any:
    """The same tree, each leaf laid out as the partition table says; to be called inside jit.

    Gradients do not inherit the sharding of their parameters, so they are constrained too.
    """
    return jax.lax.with_sharding_constraint(tree, sharding.shardings(tree, mesh))


def over_devices(array: Array) -> Array:
    """The same array, its rows spread over the devices; to be called inside jit."""
    return sharding.shard(array, "b", *"-" * (array.ndim - 1))


def where(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    """The first of two trees of equal shapes if the condition holds, else the second."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def initial_key(seed: int) -> Key[Array, ""]:
    """Random key that initialises adapters and, folded with the step, rounds stochastically."""
    return jax.random.fold_in(jax.random.key(seed), 0x7057)
