"""Compiled gradient steps have the gradient of one network in memory at a time."""

import jax
import pytest

from etpo_jax.config import Config
from etpo_jax.devices import lowering, memory
from etpo_jax.devices.mesh import build_mesh
from tests.models.small import small_decoder

# Parameters take far more memory than the activations of two short rows.
DECODER = small_decoder(
    vocab_size=32,
    hidden_size=128,
    intermediate_size=512,
    num_layers=8,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
)
SETTINGS = {
    "support_threshold": 0.0,
    "remat": "full",
    "minibatch_size": 2,
    "max_prompt_length": 32,
    "max_new_tokens": 16,
}


@pytest.mark.parametrize("microbatch_size", [0, 1])
def test_one_gradient_is_alive_at_a_time(microbatch_size):
    """With both gradients, or their sums over microbatches, it would be more than four times."""
    config = Config.from_dict({**SETTINGS, "microbatch_size": microbatch_size})
    mesh = build_mesh()
    with jax.set_mesh(mesh):
        compiled = lowering.lower_gradient_step(config, DECODER, mesh).compile()
    resident = memory.estimate(config, DECODER, mesh.abstract_mesh).resident
    (policy,) = [item.num_bytes for item in resident if item.name == "policy"]
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * policy
