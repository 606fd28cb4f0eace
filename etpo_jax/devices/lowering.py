"""A run's programs lowered from shapes alone, to be compiled for devices that need not exist."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from etpo_jax.acting.endings import state_table
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.base import AbstractRun
from etpo_jax.config import Config
from etpo_jax.devices import memory
from etpo_jax.distribution import NUM_TILTS, TILT
from models import decode
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.sharding import shardings


def lower_gradient_step(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any:
    """The gradient step of the run's algorithm, lowered; None if it defines none."""
    networks = memory.networks_of(config, decoder)
    base = _placed(abstract_parameters(decoder, jnp.dtype(config.model.compute_dtype)), mesh)
    state = _placed(memory.abstract_state(networks, base, config), mesh)
    make_batch = functools.partial(_abstract_batch, config)
    run = AbstractRun(
        networks, base, state, make_batch, lambda tree: _whole(tree, mesh), config, mesh
    )
    return config.algorithm.lower_step(run)


def lower_generation(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any:
    """Generation of one action for each of `--num_envs` prompts of the full length, lowered."""
    weights = _generation_weights(decoder, jnp.dtype(config.model.compute_dtype), mesh)
    # Stop tokens and the padding token do not influence memory; the table of ends does by its size,
    # and the largest serves every task.
    sampler = Sampler(
        decoder,
        [2],
        0,
        config.sampling,
        next_state_sv=state_table("fence", None, decoder.vocab_size),
        attention=config.model.attention,
        precision=config.model.matmul_precision,
    )
    reference = weights if config.samples_with_reference else None
    if config.finetune.tilt_learning_rate > 0:
        tilt = _whole(jax.ShapeDtypeStruct((NUM_TILTS,), jnp.float32), mesh)
        weights = {**weights, TILT: tilt}

    def generate(weights: Any, reference: Any, tokens_bp: Any, mask_bp: Any, keys_b: Any) -> Any:
        return sampler.generate(weights, tokens_bp, mask_bp, keys_b, reference_weights=reference)

    b, p = config.run.num_envs, config.model.max_prompt_length
    keys_b = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    prompts = (
        jax.ShapeDtypeStruct((b, p), jnp.int32),
        jax.ShapeDtypeStruct((b, p), jnp.bool_),
        keys_b,
    )
    return jax.jit(generate).lower(weights, reference, *_whole(prompts, mesh))


def _abstract_batch(config: Config, b: int) -> Batch:
    """Shapes of a batch of `b` transitions with the longest prompts and actions."""
    p, j = config.model.max_prompt_length, config.sampling.max_new_tokens

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    return Batch(
        prompt_tokens_bp=array(jnp.int32, b, p),
        prompt_mask_bp=array(jnp.bool_, b, p),
        action_tokens_bj=array(jnp.int32, b, j),
        action_mask_bj=array(jnp.bool_, b, j),
        log_probs_bj=array(jnp.float32, b, j),
        reward_b=array(jnp.float32, b),
        continues_b=array(jnp.float32, b),
        next_prompt_tokens_bp=array(jnp.int32, b, p),
        next_prompt_mask_bp=array(jnp.bool_, b, p),
    )


def _generation_weights(decoder: DecoderConfig, dtype: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of the weights that generation reads."""
    base = _placed(abstract_parameters(decoder, dtype), mesh)
    unstack = jax.jit(functools.partial(decode.unstack, config=decoder, dtype=dtype))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(unstack, base),
        unstack.lower(base).compile().output_shardings,
    )


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes with the shardings of the partition table."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays from the host, which lie whole on every device."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P())
        ),
        tree,
    )
