"""The whole update on eight simulated devices gives what one device gives.

The devices are a matter of the whole process: what runs on them is this file as a program.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import etpo
from etpo_jax.algorithms.etpo import Etpo
from etpo_jax.algorithms.gradients import constrain
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models import sharding
from models.transformer import Decoder
from tests.models.simulated import output_on_devices
from tests.models.small import small_decoder

VOCAB = 32
DECODER = small_decoder(vocab_size=VOCAB, intermediate_size=32)
SETTINGS = {
    "critic_loss": "retrace",
    "policy_loss": "exact",
    "trust_region": 0.0,
    "support_threshold": 0.0,
    "beta": 0.05,
    "policy_learning_rate": 5e-4,
    "critic_learning_rate": 1e-3,
    "optimizer": "adamw:b1=0.5",
}


def make_batch(b=8, p=6, j=4):
    rng = np.random.default_rng(0)
    action_mask = np.arange(j) < rng.integers(1, j + 1, b)[:, None]
    prompt_mask = np.arange(p) >= rng.integers(0, p - 1, b)[:, None]
    arrays = {
        "prompt_tokens_bp": rng.integers(0, VOCAB, (b, p), np.int32),
        "prompt_mask_bp": prompt_mask,
        "action_tokens_bj": rng.integers(0, VOCAB, (b, j), np.int32),
        "action_mask_bj": action_mask,
        "log_probs_bj": np.where(action_mask, rng.uniform(-4, -1, (b, j)), 0).astype(np.float32),
        "reward_b": rng.normal(size=b).astype(np.float32),
        "continues_b": (np.arange(b) % 2).astype(np.float32),
        "next_prompt_tokens_bp": rng.integers(0, VOCAB, (b, p), np.int32),
        "next_prompt_mask_bp": prompt_mask,
    }
    return Batch(**{name: jnp.asarray(array) for name, array in arrays.items()})


def main(mesh_text, output):
    """Steps twice on a mesh; writes metrics and first moments, the clipped gradients' averages."""
    config = Config.from_dict(SETTINGS)
    model = Decoder(DECODER, remat="full")
    networks = Etpo.make_networks(model, config)
    token = jnp.zeros((1, 1), jnp.int32)
    mesh = build_mesh(mesh_text)
    with jax.set_mesh(mesh):
        base = jax.jit(lambda key: model.init(key, token, token, token == 0)["params"])(
            jax.random.key(0)
        )
        base = jax.device_put(base, sharding.shardings(base, mesh))
        state = jax.jit(lambda tree: constrain(Etpo.initial_state(networks, tree, config), mesh))(
            base
        )
        step = etpo.make_gradient_step(networks, config, mesh)
        hyper = etpo.hyperparameters(config)
        for _ in range(2):
            state, metrics = step(state, base, make_batch(), hyper)
        assert step._cache_size() == 1, "the state came back laid out in another way"
        kernel = state.policy_optimizer[1].mu["params"]["layers"]["mlp"]["up"]["kernel"]
        shape = kernel.addressable_shards[0].data.shape
    moments = jax.tree.leaves((state.policy_optimizer[1].mu, state.critic_optimizer[1].mu))
    arrays = {f"moment {index}": np.asarray(leaf) for index, leaf in enumerate(moments)}
    arrays |= {name: np.asarray(value) for name, value in metrics.items()}
    np.savez(output, shard_shape=np.array(shape), **arrays)


def run(tmp_path, mesh_text, num_devices):
    output = tmp_path / f"{num_devices}.npz"
    output_on_devices(num_devices, __file__, mesh_text, output)
    return dict(np.load(output))


@pytest.mark.slow
def test_sharded_equals_unsharded(tmp_path):
    alone = run(tmp_path, "fsdp:1,tensor:1", 1)
    sharded = run(tmp_path, "fsdp:4,tensor:2", 8)
    assert alone.pop("shard_shape").tolist() == [2, 16, 32]
    assert sharded.pop("shard_shape").tolist() == [2, 4, 16]
    assert alone.keys() == sharded.keys()
    for name, expected in alone.items():
        np.testing.assert_allclose(sharded[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
