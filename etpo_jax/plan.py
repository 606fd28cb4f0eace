"""What a run will be, from its flags and the model's config.json alone: no weights are read."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from etpo_jax.config import Config
from etpo_jax.mesh import build_mesh
from etpo_jax.networks import Networks
from etpo_jax.update import initial_state
from models.config import DecoderConfig
from models.sharding import shardings
from models.transformer import Decoder


def describe(config: Config) -> str:
    """The plan of a run as text: how much is collected and learnt, and bytes per device.

    Raises:
      models.errors.ModelError: if the model's folder or config cannot be used.
      UsageError: if the mesh does not fit the devices.
    """
    mesh = build_mesh(config.model.mesh)
    decoder = DecoderConfig.from_folder(config.model.model)
    learning, run = config.learning, config.run
    per_update = learning.num_envs * learning.steps_per_update
    axes = ", ".join(f"{name}:{size}" for name, size in mesh.shape.items())
    lines = [
        f"{run.algorithm} on {config.task.dataset}, seed {run.seed}",
        f"{run.num_env_steps} environment steps = {math.ceil(run.num_env_steps / per_update)} "
        f"updates of {per_update} actions"
        + (
            f", {learning.updates_per_batch} gradient steps of {learning.minibatch_size} each"
            if run.algorithm != "reflection"
            else ""
        ),
        f"mesh {axes} over {mesh.devices.size} {jax.default_backend()} device(s)",
        f"model {config.model.model}: {decoder.num_layers} layers, width {decoder.hidden_size}, "
        f"vocabulary {decoder.vocab_size}",
        "",
        "parameters and bytes per device",
    ]
    lines += [
        f"  {name:18} {count / 1e6:10.2f} M  {size / 2**20:10.1f} MiB"
        for name, count, size in _roles(config, decoder, mesh)
    ]
    return "\n".join(lines)


def _roles(config: Config, decoder: DecoderConfig, mesh: Mesh) -> list[tuple[str, int, int]]:
    """Name, number of parameters and bytes per device of everything that stays on the device."""
    model = Decoder(decoder, param_dtype=jnp.dtype(config.model.dtype))
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    base = jax.eval_shape(model.init, jax.random.key(0), token, token, mask)["params"]
    trees: dict[str, Any] = {"base (reference)": base}
    if config.run.algorithm != "reflection":
        networks = Networks(model, config.learning.q_parameterization, config.learning.tie_policy)
        state = jax.eval_shape(lambda tree: initial_state(networks, tree, config), base)
        trees |= {
            "policy": state.policy,
            "critic": state.critic,
            "target critic": state.target_critic,
            "optimiser states": (state.policy_optimizer, state.critic_optimizer),
        }
    rows = [(name, *_size(tree, mesh)) for name, tree in trees.items()]
    return [*rows, ("sum", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def _size(tree: Any, mesh: Mesh) -> tuple[int, int]:
    count = size = 0
    for leaf, sharding in zip(
        jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh)), strict=True
    ):
        count += leaf.size
        size += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return count, size
