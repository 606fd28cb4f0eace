"""Steps on packed batches: the metrics and gradients of padded ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax.acting.transitions import Blocks, Transition, collate
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models import packing
from models.transformer import Decoder
from tests.models.small import perturbed, small_decoder
from tests.models.transformer_test import random_params

MODEL = Decoder(small_decoder(num_layers=5, max_position_embeddings=256))
SETTINGS = {
    "dataset": "toy",
    "minibatch_size": 8,
    "num_envs": 8,
    "gradient_steps_per_update": 1,
    "max_prompt_length": 128,
    "max_new_tokens": 32,
    "support_threshold": 0.0,
}


def make_batch():
    """Two prompts, one of which begins with the other; every other episode goes on."""
    rng = np.random.default_rng(0)

    def tokens(length):
        return rng.integers(2, 40, length).astype(np.int32)

    first = tokens(60)
    second = np.concatenate([first, tokens(20)])
    transitions = [
        Transition(
            prompt_tokens=second if row % 3 == 0 else first,
            action_tokens=tokens(5 + 3 * row),
            log_probs=np.full(5 + 3 * row, -3.0, np.float32),
            reward=float(rng.normal()),
            next_prompt_tokens=None if row % 2 else np.concatenate([first, tokens(10 + row)]),
        )
        for row in range(8)
    ]
    return collate(
        transitions, pad_id=0, length_multiple=16, max_prompt_length=128, max_new_tokens=32
    )


def step(algorithm, batch):
    """Metrics of one step, and AdamW's first moments, which are a share of the gradients."""
    if hasattr(algorithm, "learn_collection"):
        (metrics,) = algorithm.learn_collection(batch, np.random.default_rng(0))
    else:
        metrics = algorithm.learn(batch)
    state = algorithm.state
    return metrics, (state.policy_optimizer[1].mu, state.critic_optimizer[1].mu)


@pytest.mark.parametrize("microbatch_size", [0, 2])
@pytest.mark.parametrize("name", ["etpo", "ppo_kl", "poad"])
def test_packed_steps_equal_padded_ones(name, microbatch_size, monkeypatch):
    config = Config.from_dict(
        {**SETTINGS, "algorithm": name, "finetune": "lora", "microbatch_size": microbatch_size}
    )
    model = dataclasses.replace(MODEL, lora=config.finetune.adapters)
    base = jax.tree.map(jnp.asarray, random_params(model.config))
    batch, mesh = make_batch(), build_mesh()
    shapes = []
    pack = packing.pack
    monkeypatch.setattr(
        packing, "pack", lambda *of_rows: shapes.append(of_rows[0].shape) or pack(*of_rows)
    )
    found = {}
    with jax.set_mesh(mesh):
        for kind, of_kind in (
            ("padded", batch),
            ("packed", batch.with_blocks(4 if microbatch_size else 1)),
        ):
            algorithm = config.algorithm(model, base, config, mesh)
            algorithm.state = perturbed_networks(algorithm.state)
            found[kind] = step(algorithm, of_kind)
            # The microbatches of the baselines are other rows than those that were counted.
            has_packed = kind == "packed" and (name == "etpo" or not microbatch_size)
            assert bool(shapes) == has_packed
    for value, expected in zip(
        jax.tree.leaves(found["packed"]), jax.tree.leaves(found["padded"]), strict=True
    ):
        np.testing.assert_allclose(
            value, expected, rtol=2e-3, atol=1e-5 + 2e-4 * np.max(np.abs(expected))
        )


def perturbed_networks(state):
    """The state with networks that differ from each other, as after some training."""
    names = [name for name in ("policy", "critic", "target_critic") if hasattr(state, name)]
    return dataclasses.replace(
        state,
        **{
            name: perturbed(getattr(state, name), seed=seed, scale=0.05)
            for seed, name in enumerate(names)
        },
    )


def test_microbatches_are_counted_as_they_are_cut():
    batch = make_batch().with_blocks(4)
    tokens = np.concatenate([batch.prompt_tokens_bp, batch.action_tokens_bj], axis=1)
    mask = np.concatenate([batch.prompt_mask_bp, batch.action_mask_bj], axis=1)
    counts = [packing.count_blocks(tokens[part::4], mask[part::4]) for part in range(4)]
    assert batch.microbatch_blocks.action == packing.bucket(max(counts))
    assert batch.as_microbatch().blocks == batch.microbatch_blocks
    assert batch.blocks == make_batch().blocks == Blocks()
